//! From checks to a target's health, with hysteresis. Pure.

use crate::event::HealthState;

/// Checks whose results make the success ratio.
pub(super) const RATIO_OVER: u32 = 64;

/// What one check says of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It is well.
    Good,
    /// It is well and slower than it promises.
    Slow,
    /// It failed.
    Bad,
    /// The agent could not tell: nothing is held against the target, and nothing is known of it.
    Doubtful,
}

/// What is known of one target's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    state: HealthState,
    /// What the state was before the agent doubted itself.
    sure: HealthState,
    good: u32,
    slow: u32,
    bad: u32,
    /// The last results, the newest in the lowest bit; 1 is a success.
    results: u64,
    known: u32,
}

impl Default for Verdict {
    fn default() -> Self {
        Self {
            state: HealthState::Unknown,
            sure: HealthState::Unknown,
            good: 0,
            slow: 0,
            bad: 0,
            results: 0,
            known: 0,
        }
    }
}

impl Verdict {
    /// The state.
    #[must_use]
    pub(super) const fn state(&self) -> HealthState {
        self.state
    }

    /// Whether it is unhealthy, as far as is known without the times of doubt.
    #[must_use]
    pub(super) fn is_down(&self) -> bool {
        self.sure == HealthState::Unhealthy
    }

    /// Share of the last [`RATIO_OVER`] checks that succeeded; `None` before the first.
    #[must_use]
    pub(super) fn success_ratio(&self) -> Option<f64> {
        (self.known > 0).then(|| f64::from(self.results.count_ones()) / f64::from(self.known))
    }

    /// Failures in a row.
    #[must_use]
    pub(super) const fn failures_in_a_row(&self) -> u32 {
        self.bad
    }

    /// Takes what a check says; gives the state before when that is a change.
    ///
    /// The first success makes a target healthy, since nothing speaks against it. A failure degrades it at once, and
    /// `unhealthy_after` of them in a row make it unhealthy; from there `healthy_after` successes in a row lead back.
    /// As many slow ones in a row degrade it.
    pub(super) fn take(
        &mut self,
        sign: Sign,
        unhealthy_after: u32,
        healthy_after: u32,
    ) -> Option<HealthState> {
        let before = self.state;
        if sign == Sign::Doubtful {
            self.state = HealthState::Unknown;
            return (before != self.state).then_some(before);
        }
        let is_success = sign != Sign::Bad;
        self.results = self.results << 1 | u64::from(is_success);
        self.known = (self.known + 1).min(RATIO_OVER);
        self.good = if is_success { self.good.saturating_add(1) } else { 0 };
        self.slow = if sign == Sign::Slow { self.slow.saturating_add(1) } else { 0 };
        self.bad = if is_success { 0 } else { self.bad.saturating_add(1) };
        self.sure = match self.sure {
            _ if self.bad >= unhealthy_after => HealthState::Unhealthy,
            HealthState::Unhealthy if self.good < healthy_after => HealthState::Unhealthy,
            _ if self.bad > 0 || self.slow >= unhealthy_after => HealthState::Degraded,
            HealthState::Degraded if self.good < healthy_after => HealthState::Degraded,
            _ => HealthState::Healthy,
        };
        self.state = self.sure;
        (before != self.state).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthState::{Degraded, Healthy, Unhealthy, Unknown};
    use Sign::{Bad, Doubtful, Good, Slow};

    fn states(signs: &[Sign]) -> Vec<HealthState> {
        let mut verdict = Verdict::default();
        signs
            .iter()
            .map(|sign| {
                verdict.take(*sign, 3, 2);
                verdict.state()
            })
            .collect()
    }

    #[test]
    fn three_failures_in_a_row_and_two_successes_back() {
        assert_eq!(
            states(&[Good, Bad, Bad, Bad, Good, Bad, Good, Good]),
            [Healthy, Degraded, Degraded, Unhealthy, Unhealthy, Unhealthy, Unhealthy, Healthy]
        );
        assert_eq!(states(&[Bad, Good, Good]), [Degraded, Degraded, Healthy]);
        assert_eq!(states(&[Slow, Slow, Slow, Good, Good]), [Healthy, Healthy, Degraded, Healthy, Healthy]);
    }

    #[test]
    fn doubt_hides_what_is_known_and_holds_nothing_against_a_target() {
        assert_eq!(
            states(&[Good, Doubtful, Doubtful, Doubtful, Doubtful, Good]),
            [Healthy, Unknown, Unknown, Unknown, Unknown, Healthy]
        );
        assert_eq!(states(&[Bad, Bad, Doubtful, Bad]), [Degraded, Degraded, Unknown, Unhealthy]);
        let mut verdict = Verdict::default();
        let down: Vec<bool> = [Bad, Bad, Bad, Doubtful, Bad]
            .map(|sign| {
                verdict.take(sign, 3, 2);
                verdict.is_down()
            })
            .into();
        assert_eq!(down, [false, false, true, true, true], "one fault, though its state changed three times");
    }

    #[test]
    fn the_ratio_is_of_the_last_checks() {
        let mut verdict = Verdict::default();
        assert_eq!(verdict.success_ratio(), None);
        verdict.take(Good, 3, 2);
        verdict.take(Bad, 3, 2);
        assert_eq!(verdict.success_ratio(), Some(0.5));
        for _ in 0..64 {
            verdict.take(Bad, 3, 2);
        }
        assert_eq!(verdict.success_ratio(), Some(0.0));
    }
}
