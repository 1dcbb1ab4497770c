//! A *browser*: real headless Chromium inside a namespace, driven by chromedriver. `WebDriver` is a few JSON requests over
//! HTTP, so it is spoken here as it is: the crates for it bring forty others.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use xtask::testbed::Netns;

use crate::life::PATIENCE;

/// Where chromedriver listens; the namespace has a loopback of its own.
const DRIVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9515);

/// A browser takes its time on a busy machine.
const SLOW: Duration = Duration::from_mins(1);

/// The key under which `WebDriver` names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys that are pressed, as `WebDriver` has them.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// A running browser with one window. Dropping it ends it.
pub struct Browser<'a> {
    netns: &'a Netns,
    driver: Child,
    session: String,
    profile: tempfile::TempDir,
}

impl<'a> Browser<'a> {
    /// Starts it with a window of this size.
    pub fn start(netns: &'a Netns, size: (u32, u32)) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = netns.command("chromedriver");
        command
            .arg(format!("--port={}", DRIVER.port()))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let driver = netns
            .spawn(&mut command)
            .context("is chromium-driver installed? `cargo xtask setup`")?;
        let mut browser = Self {
            netns,
            driver,
            session: String::new(),
            profile,
        };
        let deadline = Instant::now() + SLOW;
        while browser.call("GET", "/status", &Value::Null).is_err() {
            ensure!(Instant::now() < deadline, "chromedriver does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        browser.open_window(size)?;
        Ok(browser)
    }

    fn open_window(&mut self, (width, height): (u32, u32)) -> Result<()> {
        let mut arguments: Vec<String> = [
            "--headless",
            // It is root's here, and its namespace has no way out.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
        ]
        .map(str::to_owned)
        .to_vec();
        let profile = self.profile.path().display();
        arguments.push(format!("--user-data-dir={profile}"));
        arguments.push(format!("--window-size={width},{height}"));
        let options = json!({
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let asked = json!({"capabilities": {"alwaysMatch": options}});
        let session = self.call("POST", "/session", &asked)?;
        let id = session["sessionId"].as_str().context("no session")?;
        self.session = format!("/session/{id}");
        self.size(width, height)
    }

    /// One `WebDriver` command; the value it answers.
    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream = self
            .netns
            .run(|| Ok(TcpStream::connect_timeout(&DRIVER, Duration::from_secs(2))?))?;
        stream.set_read_timeout(Some(SLOW))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        // chromedriver leaves the connection open, whatever is asked of it.
        let mut reader = BufReader::new(stream);
        let mut length = None;
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "no HTTP answer");
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        let mut answer = vec![0; length.context("an answer without a length")?];
        reader.read_exact(&mut answer)?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        let value = answer["value"].take();
        if let Some(error) = value["error"].as_str() {
            bail!("{path}: {error}: {}", value["message"]);
        }
        Ok(value)
    }

    fn command(&self, name: &str, body: &Value) -> Result<Value> {
        self.call("POST", &format!("{}{name}", self.session), body)
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Result<Value> {
        let body = json!({"cmd": command, "params": parameters});
        self.command("/goog/cdp/execute", &body)
    }

    /// Opens an address.
    pub fn open(&self, url: &str) -> Result<()> {
        self.command("/url", &json!({"url": url})).map(|_| ())
    }

    /// Sets the window's size.
    pub fn size(&self, width: u32, height: u32) -> Result<()> {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &size)
            .map(|_| ())
    }

    /// Has pages see this colour scheme: `light` or `dark`.
    pub fn scheme(&self, scheme: &str) -> Result<()> {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({"features": [feature]}),
        )
        .map(|_| ())
    }

    /// What a function's body returns in the page.
    pub fn eval(&self, script: &str) -> Result<Value> {
        let body = json!({"script": script, "args": []});
        self.command("/execute/sync", &body)
    }

    /// The same for a script that calls `done` with it.
    pub fn eval_later(&self, script: &str) -> Result<Value> {
        let script = format!("const done = arguments[0];\n{script}");
        self.command("/execute/async", &json!({"script": script, "args": []}))
    }

    /// The text of the first element of a CSS selector.
    pub fn text(&self, selector: &str) -> Result<String> {
        let found = self.eval(&format!(
            "return document.querySelector({})?.textContent",
            json!(selector)
        ))?;
        let text = found.as_str();
        Ok(text.with_context(|| format!("no {selector}"))?.to_owned())
    }

    /// The texts of all elements of a CSS selector.
    pub fn texts(&self, selector: &str) -> Result<Vec<String>> {
        let found = self.eval(&format!(
            "return [...document.querySelectorAll({})].map((found) => found.textContent)",
            json!(selector)
        ))?;
        Ok(serde_json::from_value(found)?)
    }

    /// Presses keys, one after the other, where the focus is.
    pub fn press(&self, keys: &str) -> Result<()> {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})))
            .collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.command("/actions", &json!({"actions": [keyboard]}))
            .map(|_| ())
    }

    /// Clicks on the first element of a CSS selector.
    pub fn click(&self, selector: &str) -> Result<()> {
        let wanted = json!({"using": "css selector", "value": selector});
        let found = self.command("/element", &wanted)?;
        let element = found[ELEMENT].as_str().context("no element")?;
        self.command(&format!("/element/{element}/click"), &json!({}))
            .map(|_| ())
    }

    /// What the page complained of in the console so far.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let log = self.command("/se/log", &json!({"type": "browser"}))?;
        let entries = log.as_array().context("a list")?.iter();
        let loud =
            entries.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        Ok(loud.map(|entry| entry["message"].to_string()).collect())
    }

    /// Every address that was asked for since the last call, whatever came of it, but for what never leaves the browser.
    pub fn requests(&self) -> Result<Vec<String>> {
        let log = self.command("/se/log", &json!({"type": "performance"}))?;
        let mut found = Vec::new();
        for entry in log.as_array().context("a list")? {
            let event: Value = serde_json::from_str(entry["message"].as_str().context("text")?)?;
            let event = &event["message"];
            if event["method"] == "Network.requestWillBeSent" {
                let url = event["params"]["request"]["url"].as_str();
                let url = url.context("an address")?;
                // Those go nowhere: a new tab before anything is opened in it, a picture that is its own address.
                if !url.starts_with("chrome:") && !url.starts_with("data:") {
                    found.push(url.to_owned());
                }
            }
        }
        Ok(found)
    }

    /// Waits until something holds.
    pub fn eventually(
        &self,
        what: &str,
        mut holds: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self)? {
            if Instant::now() > deadline {
                let text = self.text("main").unwrap_or_default();
                bail!("not in {PATIENCE:?}: {what}; the page says: {text}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Writes a picture of the page, as far down as this.
    pub fn picture(&self, path: &Path, (width, height): (u32, u32)) -> Result<()> {
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let asked = json!({"captureBeyondViewport": true, "clip": clip});
        let picture = self.devtools("Page.captureScreenshot", &asked)?;
        let coded = picture["data"].as_str().context("no picture")?;
        fs::write(path, BASE64_STANDARD.decode(coded)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _gone = self.call("DELETE", &self.session, &Value::Null);
        }
        let _gone = self.driver.kill();
        let _reaped = self.driver.wait();
        // Whatever chromedriver did not end has this profile on its command line.
        let profile = self.profile.path().as_os_str().as_encoded_bytes();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let ours = fs::read(process.path().join("cmdline"))
                .is_ok_and(|line| line.windows(profile.len()).any(|part| part == profile));
            if let (true, Ok(pid)) = (ours, process.file_name().to_string_lossy().parse()) {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
