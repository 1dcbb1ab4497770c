//! The cell protocol under every interleaving of its memory accesses: packets on several CPUs, and the
//! agent that retires cells under them.
//!
//! The checker runs the protocol's own code, [`find`], [`claim`], [`close`] and [`free`], one memory access at
//! a time: an actor is run again from its start with the answers that it got before, up to its next access;
//! that access happens; whatever the actor would do after it is without effect. So an actor's state is its list of answers (those of a
//! part that is over count only by what came of it), and all reachable states of all actors and of the
//! memory can be visited, each once.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher as _},
};

use aksnet_common::{
    cell::{
        CLAIMED, CLOSING, Cells, FREE, LIVE, PHASE, Place, claim, close, find, first_way, free,
        live,
    },
    flow::{Addr, FlowKey, WAYS},
};

/// Flows are numbered; 0 is a cleared key.
type Flow = u8;
const FLOWS: usize = 6;

fn key(flow: Flow) -> FlowKey {
    FlowKey {
        src: Addr::v4([10, 0, 0, flow]),
        src_port: flow.into(),
        ..FlowKey::default()
    }
}

fn flow(key: &FlowKey) -> Flow {
    key.src.0[15]
}

/// The memory of a cell. A key is written and read in two halves, so that a torn one shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct CellMemory {
    state: u64,
    key: [Flow; 2],
    /// What the key was before the cell was claimed: a CPU that reads early may still see it.
    key_before: [Flow; 2],
    count: u8,
}

/// The memory that all share, and the books that the checker keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    cells: [CellMemory; WAYS],
    /// Counts that the agent has taken, by flow.
    folded: [u8; FLOWS],
    /// Packets that found the bucket full, by flow.
    spilled: [u8; FLOWS],
    /// How many packets each CPU has finished, and whether it is amid one.
    finished: Vec<u8>,
    amid: Vec<bool>,
    /// The packets for whose end the agent waits: CPU and its count of finished ones.
    awaited: Vec<(usize, u8)>,
    broken: Option<&'static str>,
}

/// How the protocol is damaged, to show that the checker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    None,
    /// The agent reads and frees at once, without waiting for packets that found the cell live.
    NoQuiet,
    /// The agent frees without a last look at the counts.
    NoLastLook,
    /// The agent clears the counters before it closes.
    ClearedWhileLive,
    /// The cell is published before its key is written.
    KeyAfterPublishing,
    /// Claiming is a load and a store.
    TornSwap,
    /// The agent stores FREE without closing first.
    FreedWhileLive,
    /// A packet that has claimed never publishes.
    NeverPublished,
}

#[derive(Clone, Copy, Debug)]
struct Rules {
    damage: Damage,
    /// A key may be read as it was before it was last written (arm64 may read it before the state word).
    early_reads: bool,
}

/// What one actor does, packet by packet or way by way; each entry is one run.
#[derive(Clone, Debug)]
enum Actor {
    Cpu { number: usize, packets: Vec<Flow> },
    Agent { ways: Vec<usize> },
}

impl Actor {
    fn runs(&self) -> usize {
        match self {
            Self::Cpu { packets, .. } => packets.len(),
            Self::Agent { ways } => ways.len(),
        }
    }
}

/// Where an actor stands: which of its runs it is at, and the answers of its accesses so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Progress {
    run: usize,
    answers: Vec<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    /// Of one access.
    Access(u64),
    /// What came of a part of the run.
    Part(u64),
}

/// What an actor reads after its step: the state word of a flow that there is not. The run then soon ends.
const NOTHING: u64 = 0xdead_0000 | LIVE;

/// Memory as one actor sees it during one step.
struct View<'a> {
    world: RefCell<&'a mut World>,
    answers: RefCell<&'a mut Vec<Answer>>,
    next: Cell<usize>,
    stepped: Cell<bool>,
    /// The actor wanted a further access: it is left there.
    left: Cell<bool>,
    /// Whether the access of this step had another possible answer, and which one to give.
    choices: Cell<u64>,
    choice: u64,
    hashes: &'a [u64],
    rules: Rules,
}

impl View<'_> {
    /// One access: its old answer, or the step itself, or the end of the step.
    fn access(&self, act: impl FnOnce(&mut World) -> u64) -> u64 {
        let i = self.next.get();
        self.next.set(i + 1);
        if let Some(&Answer::Access(answer)) = self.answers.borrow().get(i) {
            return answer;
        }
        if self.stepped.replace(true) {
            self.left.set(true);
            return NOTHING;
        }
        let answer = act(*self.world.borrow_mut());
        self.answers.borrow_mut().push(Answer::Access(answer));
        answer
    }

    /// A part of a run: once it is over, its accesses are forgotten.
    fn part(&self, run: impl FnOnce() -> u64) -> u64 {
        let i = self.next.get();
        let known = self.answers.borrow().get(i).copied();
        if let Some(Answer::Part(result)) = known {
            self.next.set(i + 1);
            return result;
        }
        let result = run();
        if self.left.get() {
            return result;
        }
        let mut answers = self.answers.borrow_mut();
        answers.truncate(i);
        answers.push(Answer::Part(result));
        self.next.set(i + 1);
        result
    }

    fn key_half(&self, way: usize, half: usize) -> Flow {
        let answer = self.access(|w| {
            let cell = &w.cells[way];
            let (now, before) = (cell.key[half], cell.key_before[half]);
            if self.rules.early_reads && now != before {
                self.choices.set(2);
            }
            if self.choice == 1 { before } else { now }.into()
        });
        Flow::try_from(answer).unwrap_or(0)
    }
}

impl Cells for View<'_> {
    fn state(&self, way: usize) -> u64 {
        self.access(|w| w.cells[way].state)
    }

    fn swap_state(&self, way: usize, old: u64, new: u64) -> u64 {
        if self.rules.damage == Damage::NeverPublished && new & PHASE == LIVE {
            return old;
        }
        if self.rules.damage == Damage::TornSwap {
            let was = self.state(way);
            if was == old {
                self.access(|w| {
                    w.cells[way].state = new;
                    0
                });
            }
            return was;
        }
        self.access(|w| {
            let cell = &mut w.cells[way];
            let was = cell.state;
            if was == old {
                cell.state = new;
                if new & PHASE == CLAIMED {
                    cell.key_before = cell.key;
                }
            }
            was
        })
    }

    fn key_is(&self, way: usize, key: &FlowKey) -> bool {
        self.key_half(way, 0) == flow(key) && self.key_half(way, 1) == flow(key)
    }

    fn write_key(&self, way: usize, key: &FlowKey) {
        for half in 0..2 {
            self.access(|w| {
                if w.cells[way].state & PHASE == LIVE && self.rules.damage == Damage::None {
                    w.broken = Some("a key was written into a live cell");
                }
                w.cells[way].key[half] = flow(key);
                0
            });
        }
    }
}

/// [`claim`] with publishing and writing the key exchanged.
fn claim_key_last(cells: &View<'_>, hash: u64, key: &FlowKey) -> Place {
    for i in 0..WAYS {
        let way = (first_way(hash) + i) & (WAYS - 1);
        let state = cells.state(way);
        if state == FREE && cells.swap_state(way, FREE, live(hash)) == FREE {
            cells.write_key(way, key);
            return Place::Claimed(way);
        }
        if state == live(hash) && cells.key_is(way, key) {
            return Place::Found(way);
        }
    }
    Place::Full
}

/// Stands for 'no way' in what comes of a part.
const NONE: u64 = 99;

/// A packet, as the programs count it.
fn packet(view: &View<'_>, cpu: usize, of: Flow) {
    let (hash, key) = (view.hashes[usize::from(of)], key(of));
    let number = |way: usize| u64::try_from(way).expect("small");
    let mut found = view.part(|| find(view, hash, &key).map_or(NONE, number));
    if found == NONE {
        found = view.part(|| {
            let place = if view.rules.damage == Damage::KeyAfterPublishing {
                claim_key_last(view, hash, &key)
            } else {
                claim(view, hash, &key)
            };
            match place {
                Place::Found(way) | Place::Claimed(way) => number(way),
                Place::Full => NONE,
            }
        });
    }
    let way = (found != NONE).then(|| usize::try_from(found).expect("small"));
    view.access(|w| {
        if let Some(way) = way {
            let cell = &mut w.cells[way];
            cell.count += 1;
            if !matches!(cell.state & PHASE, LIVE | CLOSING)
                && view.rules.damage != Damage::NeverPublished
            {
                w.broken = Some("counted in a cell that is nobody's");
            } else if cell.key != [of; 2] {
                w.broken = Some("counted under another flow's key");
            }
        } else {
            w.spilled[usize::from(of)] += 1;
        }
        w.finished[cpu] += 1;
        0
    });
}

/// The agent's visits to one cell: a look at the live counts, closing, the last look a sweep later, freeing.
fn retire(view: &View<'_>, way: usize) {
    let damage = view.rules.damage;
    if view.state(way) & PHASE != LIVE {
        return;
    }
    let of = view.access(|w| w.cells[way].key[0].into());
    let fold = |seen: u64| {
        view.access(|w| {
            let count = w.cells[way].count;
            let flow = usize::try_from(of).expect("small");
            // What the agent does between two looks takes no shared memory: reading and adding is one step.
            w.folded[flow] =
                w.folded[flow].wrapping_add(count.wrapping_sub(u8::try_from(seen).expect("small")));
            count.into()
        })
    };
    let seen = fold(0);
    if damage == Damage::ClearedWhileLive {
        clear(view, way);
    }
    if damage != Damage::FreedWhileLive {
        let closed = close(view, way);
        assert!(
            closed || view.left.get(),
            "nobody else takes a live cell away"
        );
    }
    if damage != Damage::NoQuiet {
        view.access(|w| {
            // Who is amid a packet may have found the cell live.
            w.awaited = (0..w.amid.len())
                .filter(|&c| w.amid[c])
                .map(|c| (c, w.finished[c]))
                .collect();
            0
        });
        // Comes when they have finished, see `Scenario::waits`.
        view.access(|w| {
            w.awaited.clear();
            0
        });
    }
    if damage != Damage::NoLastLook {
        fold(if damage == Damage::ClearedWhileLive {
            0
        } else {
            seen
        });
    }
    clear(view, way);
    if damage == Damage::FreedWhileLive {
        view.access(|w| {
            w.cells[way].state = FREE;
            0
        });
    } else {
        let freed = free(view, way);
        assert!(freed || view.left.get(), "a closing cell can be freed");
    }
}

fn clear(view: &View<'_>, way: usize) {
    view.access(|w| {
        w.cells[way].count = 0;
        0
    });
    view.access(|w| {
        w.cells[way].key = [0; 2];
        0
    });
}

/// A bucket, who works on it, and what must come out.
struct Scenario {
    hashes: [u64; FLOWS],
    world: World,
    actors: Vec<Actor>,
    rules: Rules,
}

/// What the checker went through.
#[derive(Debug, Default)]
struct Visited {
    states: usize,
    ends: usize,
    spills: usize,
    /// Ends at which a flow had two cells.
    doubles: usize,
    /// Ends at which a cell that was freed had been claimed again.
    reuses: usize,
}

type State = (World, Vec<Progress>);

/// A state's 128-bit hash, in place of the state: millions of them are kept.
fn identity(state: &State) -> (u64, u64) {
    let half = |which: u8| {
        let mut hasher = DefaultHasher::new();
        (which, state).hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}

impl Scenario {
    /// An empty bucket; all flows begin their search at its first way.
    fn new(actors: Vec<Actor>) -> Self {
        let cpus = actors
            .iter()
            .filter(|a| matches!(a, Actor::Cpu { .. }))
            .count();
        Self {
            hashes: [0, 0x10, 0x20, 0x30, 0x40, 0x50],
            world: World {
                finished: vec![0; cpus],
                amid: vec![false; cpus],
                ..World::default()
            },
            actors,
            rules: Rules {
                damage: Damage::None,
                early_reads: false,
            },
        }
    }

    /// A cell in use.
    fn with(mut self, way: usize, of: Flow, count: u8) -> Self {
        self.world.cells[way] = CellMemory {
            state: live(self.hashes[usize::from(of)]),
            key: [of; 2],
            key_before: [of; 2],
            count,
        };
        self
    }

    fn with_hash(mut self, of: Flow, hash: u64) -> Self {
        self.hashes[usize::from(of)] = hash;
        self
    }

    fn damaged(mut self, damage: Damage) -> Self {
        self.rules.damage = damage;
        self
    }

    fn with_early_reads(mut self) -> Self {
        self.rules.early_reads = true;
        self
    }

    /// Packets per flow: those in the cells at first, and those that the CPUs count.
    fn expected(&self) -> [u8; FLOWS] {
        let mut n = [0; FLOWS];
        for cell in &self.world.cells {
            n[usize::from(cell.key[0])] += cell.count;
        }
        for actor in &self.actors {
            if let Actor::Cpu { packets, .. } = actor {
                for &of in packets {
                    n[usize::from(of)] += 1;
                }
            }
        }
        n
    }

    /// One step of one actor. Returns the states after it: several where its access may be answered in
    /// several ways, none where it has to wait or has come to its end.
    fn step(&self, (world, all): &State, who: usize) -> Vec<State> {
        let actor = &self.actors[who];
        let turn = all[who].run;
        if turn == actor.runs() || Self::waits(world, actor) {
            return vec![];
        }
        let mut after = vec![];
        let mut choices = 1;
        let mut choice = 0;
        while choice < choices {
            let (mut world, mut all) = (world.clone(), all.clone());
            let progress = &mut all[who];
            if let Actor::Cpu { number, .. } = actor {
                world.amid[*number] = true;
            }
            let view = View {
                world: RefCell::new(&mut world),
                answers: RefCell::new(&mut progress.answers),
                next: Cell::new(0),
                stepped: Cell::new(false),
                left: Cell::new(false),
                choices: Cell::new(1),
                choice,
                hashes: &self.hashes,
                rules: self.rules,
            };
            match actor {
                Actor::Cpu { number, packets } => packet(&view, *number, packets[turn]),
                Actor::Agent { ways } => retire(&view, ways[turn]),
            }
            choices = view.choices.get();
            if !view.left.get() {
                progress.run += 1;
                progress.answers.clear();
                if let Actor::Cpu { number, .. } = actor {
                    world.amid[*number] = false;
                }
            }
            after.push((world, all));
            choice += 1;
        }
        after
    }

    /// Whether the agent is in its quiet time.
    fn waits(world: &World, actor: &Actor) -> bool {
        matches!(actor, Actor::Agent { .. })
            && world
                .awaited
                .iter()
                .any(|&(cpu, finished)| world.amid[cpu] && world.finished[cpu] == finished)
    }

    /// Visits every reachable state.
    fn check(&self) -> Result<Visited, String> {
        let expected = self.expected();
        let first: State = (
            self.world.clone(),
            vec![Progress::default(); self.actors.len()],
        );
        let mut seen = HashSet::from([identity(&first)]);
        let mut open = vec![first];
        let mut visited = Visited::default();
        while let Some(state) = open.pop() {
            visited.states += 1;
            if let Some(broken) = state.0.broken {
                return Err(broken.to_owned());
            }
            let mut stuck = true;
            for who in 0..self.actors.len() {
                for after in self.step(&state, who) {
                    stuck = false;
                    if seen.insert(identity(&after)) {
                        open.push(after);
                    }
                }
            }
            if stuck {
                self.check_end(&state, expected, &mut visited)?;
            }
        }
        Ok(visited)
    }

    /// What must hold when nobody can go on.
    fn check_end(
        &self,
        (world, all): &State,
        expected: [u8; FLOWS],
        visited: &mut Visited,
    ) -> Result<(), String> {
        if (0..all.len()).any(|i| all[i].run < self.actors[i].runs()) {
            return Err("somebody waits for ever".to_owned());
        }
        let mut counted = world.folded;
        let mut cells_of = [0; FLOWS];
        for cell in &world.cells {
            match cell.state & PHASE {
                CLAIMED => return Err("a claimed cell was never published".to_owned()),
                LIVE => {
                    let of = usize::from(cell.key[0]);
                    counted[of] = counted[of].wrapping_add(cell.count);
                    cells_of[of] += 1;
                }
                FREE if cell.count != 0 => return Err("a free cell has counts".to_owned()),
                _ => {}
            }
        }
        for (counted, spilled) in counted.iter_mut().zip(world.spilled) {
            *counted = counted.wrapping_add(spilled);
        }
        if counted[1..] != expected[1..] {
            return Err(format!(
                "counts lost or doubled: {counted:?} instead of {expected:?}"
            ));
        }
        visited.ends += 1;
        visited.spills += usize::from(world.spilled != [0; FLOWS]);
        visited.doubles += usize::from(cells_of.iter().any(|&n| n > 1));
        let reused = world.cells.iter().zip(&self.world.cells);
        visited.reuses += usize::from(
            reused
                .into_iter()
                .any(|(now, then)| then.key[0] != 0 && now.key[0] != 0 && now.key != then.key),
        );
        Ok(())
    }
}

fn cpu(number: usize, packets: &[Flow]) -> Actor {
    Actor::Cpu {
        number,
        packets: packets.to_vec(),
    }
}

fn agent(ways: &[usize]) -> Actor {
    Actor::Agent {
        ways: ways.to_vec(),
    }
}

/// Two CPUs count flows of their own in a bucket whose last free cell, or first retired one, both want.
fn crowded(actors: Vec<Actor>) -> Scenario {
    Scenario::new(actors)
        .with(0, 3, 2)
        .with(1, 4, 1)
        .with(2, 5, 1)
}

fn sound(scenario: &Scenario) -> Visited {
    let visited = scenario.check().expect("every interleaving is sound");
    assert!(visited.ends > 0, "no interleaving came to its end");
    println!("{visited:?}");
    visited
}

fn caught(scenario: &Scenario) -> String {
    scenario.check().expect_err("the damage goes unnoticed")
}

// Packets among themselves.

#[test]
fn two_cpus_with_the_same_new_flow_lose_nothing() {
    let visited = sound(&Scenario::new(vec![cpu(0, &[1, 1]), cpu(1, &[1, 1])]));
    assert_eq!(visited.spills, 0);
}

#[test]
fn three_cpus_with_the_same_new_flow_lose_nothing() {
    let visited = sound(&Scenario::new(vec![
        cpu(0, &[1]),
        cpu(1, &[1]),
        cpu(2, &[1]),
    ]));
    assert_eq!(visited.spills, 0);
}

#[test]
fn two_flows_that_want_the_last_free_cell_get_it_once() {
    let visited = sound(&crowded(vec![cpu(0, &[1]), cpu(1, &[2])]));
    assert_eq!(
        visited.spills, visited.ends,
        "one of the two finds the bucket full"
    );
}

#[test]
fn two_flows_that_want_the_same_cell_both_get_one() {
    let visited = sound(&Scenario::new(vec![cpu(0, &[1, 1]), cpu(1, &[2, 1])]));
    assert_eq!(visited.spills, 0);
}

#[test]
fn two_flows_with_the_same_hash_are_never_mixed() {
    let visited = sound(&Scenario::new(vec![cpu(0, &[1, 2]), cpu(1, &[2, 1])]).with_hash(2, 0x10));
    assert_eq!(visited.spills, 0);
}

// Packets and the agent.

#[test]
fn flow_that_is_retired_while_it_sends_loses_nothing() {
    let visited = sound(&crowded(vec![cpu(0, &[3, 3]), agent(&[0])]));
    assert!(visited.spills == 0, "the fourth cell is free");
}

#[test]
fn flow_that_is_retired_while_two_cpus_send_it_loses_nothing() {
    sound(&crowded(vec![cpu(0, &[3]), cpu(1, &[3, 3]), agent(&[0])]));
}

#[test]
fn freed_cell_is_used_by_another_flow_without_mixing_them() {
    let scenario = crowded(vec![cpu(0, &[3]), cpu(1, &[1, 1]), agent(&[0])]).with(3, 2, 1);
    let visited = sound(&scenario);
    assert!(visited.reuses > 0, "the cell was never used again");
    assert!(visited.spills > 0, "the bucket was never full");
}

#[test]
fn new_flow_that_is_retired_at_once_loses_nothing() {
    sound(&Scenario::new(vec![
        cpu(0, &[1, 1]),
        cpu(1, &[2]),
        agent(&[0, 0]),
    ]));
}

#[test]
fn whole_bucket_swept_under_packets_loses_nothing() {
    let visited = sound(&crowded(vec![
        cpu(0, &[1, 3]),
        cpu(1, &[4]),
        agent(&[0, 1, 3]),
    ]));
    assert!(visited.reuses > 0);
}

#[test]
fn keys_read_too_early_cost_a_second_cell_but_no_count() {
    let visited = sound(&Scenario::new(vec![cpu(0, &[1]), cpu(1, &[1, 1])]).with_early_reads());
    assert!(visited.doubles > 0, "no key was read too early");
    let scenario = crowded(vec![cpu(0, &[3]), cpu(1, &[1, 1]), agent(&[0])]).with(3, 2, 1);
    sound(&scenario.with_early_reads());
    sound(&Scenario::new(vec![cpu(0, &[1]), cpu(1, &[1]), agent(&[0, 0])]).with_early_reads());
}

#[test]
fn every_first_way_is_sound() {
    for first in 0..4_u64 {
        let scenario = crowded(vec![cpu(0, &[1]), cpu(1, &[2, 3]), agent(&[0])]);
        sound(&scenario.with_hash(1, first << 62 | 0x10).with_hash(2, 0x20));
    }
}

// The checker sees damage.

#[test]
fn freeing_without_the_quiet_time_is_caught() {
    let scenario = crowded(vec![cpu(0, &[3]), cpu(1, &[1]), agent(&[0])]);
    assert_eq!(
        caught(&scenario.damaged(Damage::NoQuiet)),
        "counted in a cell that is nobody's"
    );
}

#[test]
fn freeing_without_the_last_look_is_caught() {
    let scenario = crowded(vec![cpu(0, &[3]), agent(&[0])]).damaged(Damage::NoLastLook);
    assert!(caught(&scenario).starts_with("counts lost"));
}

#[test]
fn clearing_a_live_cell_is_caught() {
    let scenario = crowded(vec![cpu(0, &[3]), agent(&[0])]).damaged(Damage::ClearedWhileLive);
    assert!(
        caught(&scenario).contains("another flow's key"),
        "{:?}",
        caught(&scenario)
    );
}

#[test]
fn freeing_a_live_cell_is_caught() {
    let scenario = crowded(vec![cpu(0, &[3]), agent(&[0])]).damaged(Damage::FreedWhileLive);
    assert_eq!(caught(&scenario), "counted in a cell that is nobody's");
}

#[test]
fn key_written_after_publishing_is_caught() {
    let scenario =
        Scenario::new(vec![cpu(0, &[1]), agent(&[0])]).damaged(Damage::KeyAfterPublishing);
    assert!(
        caught(&scenario).starts_with("counts lost"),
        "{:?}",
        caught(&scenario)
    );
}

#[test]
fn claim_in_two_accesses_is_caught() {
    let scenario = Scenario::new(vec![cpu(0, &[1]), cpu(1, &[2])]).damaged(Damage::TornSwap);
    assert!(
        caught(&scenario).starts_with("counts lost"),
        "{:?}",
        caught(&scenario)
    );
}

#[test]
fn claimed_cell_that_is_never_published_is_caught() {
    let scenario = Scenario::new(vec![cpu(0, &[1])]).damaged(Damage::NeverPublished);
    assert_eq!(caught(&scenario), "a claimed cell was never published");
}
