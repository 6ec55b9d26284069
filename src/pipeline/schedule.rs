//! Which stage may start next.

use super::graph::Graph;

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waits,
    Runs,
    Well,
    Badly,
}

/// Stages in the order of the recipe, side by side where nothing makes them wait.
pub(super) struct Schedule<'a> {
    graph: &'a Graph,
    /// Places that each stage takes.
    weights: Vec<usize>,
    free: usize,
    states: Vec<State>,
}

impl<'a> Schedule<'a> {
    /// All stages wait; no more than `jobs` places are taken at once.
    pub(super) fn new(graph: &'a Graph, weights: Vec<usize>, jobs: usize) -> Self {
        let states = vec![State::Waits; weights.len()];
        Self {
            graph,
            weights,
            free: jobs,
            states,
        }
    }

    /// The next stage to start, which then runs.
    pub(super) fn start(&mut self) -> Option<usize> {
        let ended = |stage: usize| matches!(self.states[stage], State::Well | State::Badly);
        let ready = |stage: &usize| {
            self.states[*stage] == State::Waits && self.graph.waits(*stage).all(ended)
        };
        // None overtakes the first that could run: one that takes the whole machine would never find it free.
        let stage = (0..self.states.len())
            .find(ready)
            .filter(|stage| self.weights[*stage] <= self.free)?;
        self.free -= self.weights[stage];
        self.states[stage] = State::Runs;
        Some(stage)
    }

    /// A stage that runs has ended.
    pub(super) fn end(&mut self, stage: usize, well: bool) {
        self.free += self.weights[stage];
        self.states[stage] = if well { State::Well } else { State::Badly };
    }

    /// A stage that can never start, and one that it needs, which ended badly.
    pub(super) fn skip(&mut self) -> Option<(usize, usize)> {
        let bad = |stage: usize| {
            self.graph
                .needs(stage)
                .iter()
                .copied()
                .find(|needed| self.states[*needed] == State::Badly)
        };
        let waiting = (0..self.states.len()).filter(|stage| self.states[*stage] == State::Waits);
        let found = waiting
            .filter_map(|stage| Some((stage, bad(stage)?)))
            .next()?;
        self.states[found.0] = State::Badly;
        Some(found)
    }
}
