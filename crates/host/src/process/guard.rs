//! The guard of one worker: a small process between a replica and an agent (`lastword __guard`).
//!
//! Owns the agent's life. The replica may die in any way, and be frozen or cut off: the guard sees
//! the lifeline close, or fall silent, and ends the agent with everything it ever started. It keeps
//! the last part of I11, and it refuses to leave a survivor: an agent that ignores SIGTERM, opens
//! sessions of its own or forks twice still ends, because orphans come to the guard. Where it can be the guard
//! is the first process of a namespace: then its own end is the end of all the others too. Where the tree has a control
//! group the kernel holds its memory; the guard stays outside of it, since it has to tell.
//!
//! ```text
//! plan ──► spawned ──► watching ──stop──► stopping ──grace over──┐
//!   └────► refused         ├──kill, over a limit, silence, agent gone──► tree ended ──► exited
//!                          └──lifeline closed──► tree ended
//! ```
//! Single-threaded and without tokio: a death signal is tied to the thread that forked, and a
//! hundred idle guards must cost next to nothing.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::ExitStatusExt,
    },
    process::Child,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        eventfd::EventFd,
        prctl,
        signal::{SigSet, Signal, killpg},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    birth::{Born, release_pipes, spawn},
    cgroup::Group,
    guard_protocol::{AgentEnd, GuardEnd, GuardOrder, Plan, Report, wait},
    namespace::{OwnNamespace, PROBE},
    proc_tree,
};

/// How often the tree is measured while its worker has a turn, and while it has none: a look costs some
/// hundred microseconds, and thousands of idle workers are the normal case.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_IDLE_EVERY: Duration = Duration::from_secs(5);

/// The shortest time between two looks, near the limit of memory, and how fast a tree is taken to grow, in bytes a second:
/// about what a core can touch. So a sprint between two looks ends near the limit, and nothing else has to stop it.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);
const GROWTH_MAX: u64 = 2 << 30;

/// How long the end of a tree is waited for. SIGKILL cannot be refused; what outlives this is stuck
/// inside the kernel and will never again run code of its own.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// From the kernel's word that it is about to kill to the kill, at most: then it has found that there was no need.
const ALARM_SPAN: Duration = Duration::from_secs(1);

/// How long the control group of a tree that has ended is tried to be removed: its last process leaves a moment after it
/// was reaped.
const GROUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Guards one agent from its start to its end. The process's exit code: 0 when the end was
/// reported or nobody was left to hear it, 1 when the guard itself could not work.
pub fn run() -> i32 {
    match guard() {
        Ok(()) => 0,
        // Nobody reads this but the agent's log; the replica sees the lifeline close.
        Err(why) => {
            let _ = writeln!(io::stderr(), "lastword: worker guard: {why}");
            1
        }
    }
}

fn guard() -> io::Result<()> {
    prctl::set_name(c"lastword-guard")?;
    prctl::set_child_subreaper(true)?;
    if std::env::args().nth(2).is_some_and(|word| word == PROBE) {
        let own = OwnNamespace::enter()?;
        return own.map(drop).ok_or_else(|| io::Error::other("this process is not the first of a namespace"));
    }
    // First: it closes whatever else is open.
    let mut lifeline = GuardEnd::take()?;
    let own = OwnNamespace::enter()?;
    let signals = take_signals()?;
    let Some(plan) = lifeline.plan()? else { return Ok(()) };
    let (born, group) = match spawn(&plan) {
        Ok(born) => (born, plan.group.clone()),
        Err(refusal) => {
            remove(plan.group.as_ref());
            return lifeline.report(&Report::Refused(refusal));
        }
    };
    let unbound = born.unbound.clone();
    let mut watch = Watch::new(plan, born, lifeline, signals);
    // A replica that is gone already is noticed by the first look at the lifeline.
    // Its number out there, while it is surely not reaped.
    let pid = own.as_ref().map_or(Some(watch.pid), |own| own.outside(watch.pid));
    let pid = pid.ok_or_else(|| io::Error::other("the agent has no number outside its namespace"))?.as_raw();
    drop(own);
    let _ = watch.lifeline.report(&Report::Spawned { pid, unbound });
    let looking = release_pipes().and_then(|()| watch.until_over());
    watch.end_tree();
    let ended = watch.ended();
    if looking.is_ok() {
        let _ = watch.lifeline.report(&Report::Exited(ended));
    }
    remove(group.as_ref());
    looking
}

/// Removes the control group of a tree that is gone. A later replica removes what is left.
fn remove(group: Option<&Group>) {
    let until = Instant::now() + GROUP_TIMEOUT;
    while group.is_some_and(|group| group.remove().is_err()) && Instant::now() < until {
        let _ = wait(&[], Duration::from_millis(5));
    }
}

/// One agent under guard.
struct Watch {
    plan: Plan,
    /// `None` once it is reaped.
    agent: Option<Child>,
    /// The agent's, and its group's.
    pid: Pid,
    lifeline: GuardEnd,
    signals: SignalFd,
    /// Told by the kernel when it is about to kill in the tree's control group, and how long the kill is looked for.
    alarm: Option<EventFd>,
    alarm_ends: Option<Instant>,
    /// When the replica was last heard.
    heard_at: Instant,
    looked_at: Instant,
    /// Resident memory at the last look, in bytes.
    resident: u64,
    /// Whether the worker has a turn, as the replica last said.
    is_busy: bool,
    /// When a stop turns into a kill.
    grace_ends: Option<Instant>,
    /// The agent's end and why, as far as it is known.
    end: AgentEnd,
    is_over: bool,
}

impl Watch {
    fn new(mut plan: Plan, born: Born, lifeline: GuardEnd, signals: SignalFd) -> Self {
        let now = Instant::now();
        let Born { agent, pid, unbound } = born;
        plan.group = plan.group.filter(|_| unbound.is_none());
        let alarm = plan.group.as_ref().and_then(Group::alarm);
        Watch {
            plan,
            agent: Some(agent),
            pid,
            lifeline,
            signals,
            alarm,
            alarm_ends: None,
            heard_at: now,
            looked_at: now,
            resident: 0,
            is_busy: true,
            grace_ends: None,
            end: AgentEnd::default(),
            is_over: false,
        }
    }

    /// Watches until the agent is gone or the tree has to go.
    fn until_over(&mut self) -> io::Result<()> {
        while !self.is_over {
            let alarm = self.alarm.as_ref().map(AsFd::as_fd);
            let fds = [Some(self.lifeline.as_fd()), Some(self.signals.as_fd()), alarm];
            let fds: Vec<BorrowedFd<'_>> = fds.into_iter().flatten().collect();
            wait(&fds, self.timeout())?;
            self.take_signals()?;
            self.take_alarm();
            // Orders before clocks: a guard that was itself held up must not take the renewals that
            // wait in its socket for silence.
            self.take_orders();
            self.judge_clocks();
            if self.looked_at.elapsed() >= self.look_every() {
                self.looked_at = Instant::now();
                self.judge_usage();
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Duration {
        let next_look = self.looked_at + self.look_every();
        let next = self.grace_ends.map_or(next_look, |grace| grace.min(next_look));
        next.min(self.silence_ends()).saturating_duration_since(Instant::now())
    }

    fn look_every(&self) -> Duration {
        if self.alarm_ends.is_some_and(|ends| Instant::now() < ends) {
            return LOOK_EVERY_MIN;
        }
        if !self.is_busy {
            return LOOK_IDLE_EVERY;
        }
        // No sprint gets past the kernel.
        if self.plan.group.is_some() {
            return LOOK_EVERY;
        }
        let left = self.plan.memory_bytes.saturating_sub(self.resident);
        Duration::from_micros(left / (GROWTH_MAX / 1_000_000)).clamp(LOOK_EVERY_MIN, LOOK_EVERY)
    }

    fn silence_ends(&self) -> Instant {
        self.heard_at + Duration::from_millis(self.plan.silence_max_ms)
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                self.reap();
            } else {
                self.stop();
            }
        }
        Ok(())
    }

    /// The kernel kills one process, the largest; the others go with it, where it was one of this group.
    fn take_alarm(&mut self) {
        if self.alarm.as_ref().is_some_and(|alarm| alarm.read().is_ok()) {
            self.alarm_ends = Some(Instant::now() + ALARM_SPAN);
        }
    }

    /// Whether the kernel has ended something of the tree for its limit.
    fn is_over_in_group(&self) -> bool {
        self.plan.group.as_ref().is_some_and(Group::is_over)
    }

    fn take_orders(&mut self) {
        let is_open = self.lifeline.fill();
        while let Some(line) = self.lifeline.take_line() {
            match serde_json::from_slice(&line) {
                Ok(GuardOrder::Renew(is_busy)) => {
                    self.heard_at = Instant::now();
                    self.is_busy = is_busy;
                }
                Ok(GuardOrder::Stop {}) => self.stop(),
                Ok(GuardOrder::Kill {}) => self.is_over = true,
                // Both ends are one build. What cannot be read is not the replica's voice.
                Err(_) => self.is_over = true,
            }
        }
        self.is_over |= !is_open;
    }

    fn judge_clocks(&mut self) {
        let now = Instant::now();
        self.is_over |= self.grace_ends.is_some_and(|grace| now >= grace);
        if !self.is_over && now >= self.silence_ends() {
            self.end.silence = true;
            self.is_over = true;
        }
    }

    fn judge_usage(&mut self) {
        if self.is_over {
            return;
        }
        let usage = proc_tree::usage_below(Pid::this());
        self.resident = usage.resident;
        self.end.processes = usage.processes > self.plan.processes_max;
        // The exact sum only where the cheap one alarms: forked workers share most of their pages.
        let is_seen = usage.resident > self.plan.memory_bytes
            && proc_tree::shared_once(Pid::this()) > self.plan.memory_bytes;
        self.end.oom = !self.end.processes && (is_seen || self.is_over_in_group());
        self.is_over = self.end.processes || self.end.oom;
    }

    fn stop(&mut self) {
        if self.grace_ends.is_none() {
            self.grace_ends = Some(Instant::now() + Duration::from_millis(self.plan.stop_grace_ms));
            let _ = killpg(self.pid, Signal::SIGTERM);
            // A stopped process hears SIGTERM only when it goes on.
            let _ = killpg(self.pid, Signal::SIGCONT);
        }
    }

    /// Reaps whatever is dead; false when no child is left.
    fn reap(&mut self) -> bool {
        // The agent first, by itself: below, an end by a real-time signal has no number.
        match self.agent.as_mut().map(Child::try_wait) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(status))) => self.agent_ended(status.code(), status.signal()),
            Some(Err(_)) => self.agent_ended(None, None),
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.pid => self.agent_ended(Some(code), None),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.pid => {
                    self.agent_ended(None, Some(signal as i32));
                }
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => {}
                Err(_) => return false,
            }
        }
    }

    fn agent_ended(&mut self, code: Option<i32>, signal: Option<i32>) {
        self.agent = None;
        (self.end.code, self.end.signal) = (code, signal);
        self.is_over = true;
    }

    /// SIGKILLs the tree, again and again, until it is gone.
    fn end_tree(&mut self) {
        let until = Instant::now() + END_TIMEOUT;
        while self.reap() && Instant::now() < until {
            proc_tree::kill_below(Pid::this());
            let _ = wait(&[self.signals.as_fd()], Duration::from_millis(20));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }

    /// How it ended, once the tree is gone.
    fn ended(&self) -> AgentEnd {
        let mut end = self.end;
        // An agent may see its child killed, and leave, before this guard knows why.
        let is_told = end.oom || end.processes || end.silence || end.code == Some(0);
        end.oom |= !is_told && self.is_over_in_group();
        if end.code.is_none() && end.signal.is_none() {
            end.signal = Some(Signal::SIGKILL as i32);
        }
        end
    }
}

fn take_signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_set_mask()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}
