//! Bad and good windows in a row, so that a state does not flap.

/// Becomes raised after some bad windows in a row, and falls back after some good ones in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hysteresis {
    raised: bool,
    /// Windows in a row that speak against the present state.
    against: u32,
}

impl Hysteresis {
    /// Takes one window's verdict; gives whether it is raised now.
    pub(super) fn step(&mut self, bad: bool, worse_after: u32, better_after: u32) -> bool {
        if bad == self.raised {
            self.against = 0;
            return self.raised;
        }
        self.against += 1;
        let needed = if self.raised { better_after } else { worse_after };
        if self.against >= needed {
            *self = Self { raised: !self.raised, against: 0 };
        }
        self.raised
    }

    /// Whether it is raised.
    pub(super) const fn raised(self) -> bool {
        self.raised
    }

    /// Whether good windows would leave it as it is.
    pub(super) const fn is_idle(self) -> bool {
        !self.raised && self.against == 0
    }
}
