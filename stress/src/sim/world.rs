//! One run: who may act next is chance, what must hold is checked after every step.

use super::check::{Checks, Violation};
use super::destination_shell::DestinationShell;
use super::environment::Environment;
use super::guest::Guest;
use super::link::Channel;
use super::scenario::{Place, Scenario, Side, Strike};
use super::source_shell::SourceShell;
use limosa_protocol::{DestinationEvent, GuestFate, OperatorWord, SourceEvent};
use std::collections::VecDeque;
use std::time::Duration;

/// Steps within which a run must end. A migration here takes some hundred; a hundred times that is for ever (I11).
pub const STEPS_MAX: u64 = 50_000;

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// Time, chance, link, guest.
    pub environment: Environment,
    /// The source's process.
    pub source: SourceShell,
    /// The destination's process.
    pub destination: DestinationShell,
    /// What is watched.
    pub checks: Checks,
    starts_postcopy: bool,
    strikes: VecDeque<Strike>,
    steps_in_place: u64,
    struck: Vec<Strike>,
    visited: Vec<Place>,
}

/// What became of a run.
#[derive(Debug)]
pub struct Report {
    /// The world at its end.
    pub world: World,
    /// Steps that it took.
    pub steps: u64,
    /// The faults that struck.
    pub struck: Vec<Strike>,
    /// The states that were seen between two steps.
    pub visited: Vec<Place>,
}

/// Who acts, if there are no channels.
const ACTORS: u64 = 10;

/// Who acts besides: the two ends of the channels.
const CHANNEL_ACTORS: u64 = 2;

impl World {
    /// The world of a scenario, at time zero.
    pub fn new(scenario: Scenario) -> Self {
        let guest = Guest::new(scenario.writes, scenario.working_set);
        let mut environment = Environment::new(scenario.rng, guest, scenario.channels, scenario.mutant);
        let source = SourceShell::new(scenario.source, &mut environment);
        Self {
            environment,
            source,
            destination: DestinationShell::new(scenario.destination, scenario.channels),
            checks: Checks::default(),
            starts_postcopy: scenario.starts_postcopy,
            strikes: scenario.strikes.into(),
            steps_in_place: 0,
            struck: Vec::new(),
            visited: Vec::new(),
        }
    }

    /// Runs until both sides have ended.
    ///
    /// # Errors
    /// The first thing that must not happen.
    pub fn run(mut self) -> Result<Report, Violation> {
        for steps in 0..STEPS_MAX {
            self.strike();
            if self.has_ended() {
                self.checks.at_end(
                    &self.source,
                    &self.destination,
                    &self.environment,
                    !self.struck.is_empty(),
                )?;
                let struck = std::mem::take(&mut self.struck);
                let visited = std::mem::take(&mut self.visited);
                return Ok(Report { world: self, steps, struck, visited });
            }
            self.step()?;
            self.visit(Place { side: Side::Source, state: self.source.machine.state_name() });
            self.visit(Place { side: Side::Destination, state: self.destination.machine.state_name() });
            self.checks.after_step(&self.source, &self.destination, &self.environment)?;
        }
        Err(self.stuck())
    }

    fn has_ended(&self) -> bool {
        (self.source.finished || self.source.crashed)
            && (self.destination.finished || self.destination.crashed)
    }

    fn visit(&mut self, place: Place) {
        if !self.visited.contains(&place) {
            self.visited.push(place);
        }
    }

    /// Lets the next fault strike if its time and place have come.
    fn strike(&mut self) {
        let Some(strike) = self.strikes.front().copied() else { return };
        if strike.place.is_some_and(|place| !self.is_in(place)) {
            return;
        }
        if self.steps_in_place < strike.after {
            self.steps_in_place += 1;
            return;
        }
        self.steps_in_place = 0;
        self.strikes.pop_front();
        self.struck.push(strike);
        strike.fault.strike(self);
    }

    fn is_in(&self, place: Place) -> bool {
        match place.side {
            Side::Source => !self.source.crashed && self.source.machine.state_name() == place.state,
            Side::Destination => {
                !self.destination.crashed && self.destination.machine.state_name() == place.state
            }
        }
    }

    /// Somebody does something; if nobody can, time passes until somebody can.
    fn step(&mut self) -> Result<(), Violation> {
        self.environment.now += Duration::from_micros(self.environment.rng.below(50));
        if std::mem::take(&mut self.environment.connected) {
            self.destination.reconnected();
        }
        self.environment.listener = self.destination.listener();
        let actors = ACTORS + if self.environment.channels.is_empty() { 0 } else { CHANNEL_ACTORS };
        let first = self.environment.rng.below(actors);
        if (first..first + actors).any(|actor| self.act(actor % actors)) {
            return Ok(());
        }
        match self.next_time() {
            Some(time) => {
                self.environment.now = self.environment.now.max(time);
                Ok(())
            }
            None => Err(self.stuck()),
        }
    }

    fn act(&mut self, actor: u64) -> bool {
        let environment = &mut self.environment;
        match actor {
            0 => self.source.advance(environment),
            1 => self.source.read(environment),
            2 => self.destination.advance(environment),
            3 => self.destination.acknowledge(environment),
            4 => self.guest_writes(),
            5 => self.destination.read_main(environment),
            6 => self.destination.read_preempt(environment),
            7 => self.destination.ask(environment),
            8 => self.source.serve(environment),
            9 => self.user_acts(),
            10 => self.source.send_on_channel(environment),
            _ => self.destination.receive_on_channel(environment),
        }
    }

    fn guest_writes(&mut self) -> bool {
        let Environment { guest, rng, .. } = &mut self.environment;
        if !rng.one_in(2) {
            return false;
        }
        if self.source.guest_runs {
            let memory = &mut self.source.memory;
            let Some(page) = guest.write(rng, &mut memory.pages) else { return false };
            memory.log[page] = true;
            return true;
        }
        if !self.destination.guest_runs {
            return false;
        }
        let page = guest.choose(rng);
        if !self.destination.received[page] {
            return self.destination.fault(page);
        }
        let mut pages = self.destination.pages.map(Option::unwrap_or_default);
        let written = guest.write_page(page, &mut pages);
        if written {
            self.destination.pages[page] = Some(pages[page]);
        }
        written
    }

    fn user_acts(&mut self) -> bool {
        self.user_continues() || self.user_starts_postcopy() || self.user_recovers()
    }

    fn user_starts_postcopy(&mut self) -> bool {
        let may = self.starts_postcopy && self.source.machine.may_start_postcopy() && !self.source.crashed;
        if !may || !self.environment.rng.one_in(60) {
            return false;
        }
        self.starts_postcopy = false;
        self.source.tell(SourceEvent::StartPostcopy);
        true
    }

    /// A user who finds a migration paused takes it up again, or says what he has seen on the other side.
    fn user_recovers(&mut self) -> bool {
        if !self.waits_for_operator() || !self.environment.rng.one_in(8) {
            return false;
        }
        if self.source.crashed {
            self.destination.tell(DestinationEvent::GiveUp);
            return true;
        }
        let destination = &self.destination;
        let answers = destination.machine.last_word().is_some();
        let ended = destination.machine.outcome().map(|outcome| outcome.fate);
        let event = match ended {
            _ if destination.crashed && destination.guest_ran => SourceEvent::Operator(OperatorWord::GiveUp),
            _ if destination.crashed => SourceEvent::Operator(OperatorWord::NeverRan),
            Some(GuestFate::OnDestination) if !answers || self.environment.rng.one_in(2) => {
                SourceEvent::Operator(OperatorWord::HasGuest)
            }
            Some(GuestFate::OnSource) if !answers => SourceEvent::Operator(OperatorWord::NeverRan),
            _ => SourceEvent::ResumePostcopy,
        };
        self.source.tell(event);
        true
    }

    /// Nothing goes on without a user's word.
    fn waits_for_operator(&self) -> bool {
        let source = &self.source;
        if source.crashed {
            return self.destination.machine.paused().is_some() && !self.destination.crashed;
        }
        source.machine.paused().is_some() && source.inbox_length() == 0
    }

    fn user_continues(&mut self) -> bool {
        let waits = self.source.machine.state_name() == "pre-switchover" && self.source.inbox_length() == 0;
        if !waits || self.source.crashed || !self.environment.rng.one_in(8) {
            return false;
        }
        self.source.tell(SourceEvent::Continue);
        true
    }

    /// When something will happen by itself.
    fn next_time(&self) -> Option<Duration> {
        let environment = &self.environment;
        let machine = self.source.machine.poll_timeout().map(|time| environment.since_start(time));
        let timer = machine.filter(|_| !self.source.crashed && !self.source.finished);
        let link = &environment.link;
        let times = [
            timer,
            link.main.next_time(),
            link.back.next_time(),
            link.preempt.next_time(),
            self.destination.ack_time(),
            self.destination.patience_ends(),
        ];
        let channels = environment.channels.iter().map(Channel::next_time);
        let ahead = times.into_iter().chain(channels).flatten().filter(|time| *time > environment.now).min();
        // A user who tosses a coin before he acts needs no time, only another toss.
        let user = self.source.machine.state_name() == "pre-switchover" && !self.source.crashed;
        ahead.or((user || self.waits_for_operator()).then_some(environment.now))
    }

    fn stuck(&self) -> Violation {
        Violation::Stuck {
            source_state: self.source.machine.state_name(),
            destination_state: self.destination.machine.state_name(),
        }
    }
}
