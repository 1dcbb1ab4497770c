// Where snapshots come from: the agent is asked again and again, less often while nobody looks, and with patience when it
// does not answer.

/** Between two questions, in milliseconds. */
const BETWEEN = 1000;
const HIDDEN = 15_000;
const GONE = 2000;
/** The agent answers in milliseconds; a broken port-forward never does. */
const PATIENCE = 5000;

export class Source {
  /** `query()` gives what to ask; `heard` gets a snapshot, `refused` what the agent does not understand, `gone` nothing. */
  constructor(query, { heard, refused, gone }) {
    this.query = query;
    this.hears = { heard, refused, gone };
    this.paused = false;
    this.round = 0;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !this.paused) this.ask();
    });
  }

  /** Asks now, and from now on. What was asked before is not waited for any more. */
  async ask() {
    const round = (this.round += 1);
    clearTimeout(this.timer);
    this.asked?.abort();
    const asked = (this.asked = new AbortController());
    const patience = setTimeout(() => asked.abort(), PATIENCE);
    let next = BETWEEN;
    try {
      const response = await fetch(`api/live?${this.query()}`, { cache: "no-store", signal: asked.signal });
      const answer = await response.json();
      if (round !== this.round) return;
      if (response.ok) this.hears.heard(answer);
      else this.hears.refused(answer.error);
    } catch {
      if (round !== this.round) return;
      this.hears.gone();
      next = GONE;
    } finally {
      clearTimeout(patience);
    }
    if (!this.paused) this.timer = setTimeout(() => this.ask(), document.hidden ? HIDDEN : next);
  }

  pause(paused) {
    this.paused = paused;
    if (paused) {
      this.round += 1;
      clearTimeout(this.timer);
      this.asked?.abort();
    } else {
      this.ask();
    }
  }
}
