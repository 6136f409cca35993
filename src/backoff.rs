//! Strikes: failures in a row of one workload, and when it may be tried again. `now` is an argument.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::desired::BootTime;
use crate::workload::{Backoff, Revision};

/// Docker's delays: 100 ms, doubled up to 60 s, started anew by a run of at least 10 s.
pub const INITIAL: Duration = Duration::from_millis(100);
pub const FACTOR: u32 = 2;
pub const MAX: Duration = Duration::from_mins(1);
pub const RESET_AFTER: Duration = Duration::from_secs(10);

/// The delays of one workload, with every default applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    pub initial: Duration,
    pub factor: u32,
    pub max: Duration,
    pub reset_after: Duration,
}

impl Default for Delays {
    fn default() -> Self {
        Self { initial: INITIAL, factor: FACTOR, max: MAX, reset_after: RESET_AFTER }
    }
}

impl Delays {
    /// A workload's own delays over the configuration's.
    pub fn of(own: &Backoff, defaults: Self) -> Self {
        Self {
            initial: own.initial.map_or(defaults.initial, |it| it.0),
            factor: own.factor.unwrap_or(defaults.factor),
            max: own.max.map_or(defaults.max, |it| it.0),
            reset_after: own.reset_after.map_or(defaults.reset_after, |it| it.0),
        }
    }

    /// The delay before the next try after `count` failures in a row; zero after none.
    pub fn after(&self, count: u32) -> Duration {
        if count == 0 {
            return Duration::ZERO;
        }
        let factor = self.factor.max(1).checked_pow(count - 1);
        factor.and_then(|factor| self.initial.checked_mul(factor)).unwrap_or(self.max).min(self.max)
    }
}

/// Failures in a row of one wish. Kept under the run directory, so a reboot forgets them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Strikes {
    /// The revision that was tried; another one starts without strikes.
    pub revision: Revision,
    pub count: u32,
    /// When the last one was counted.
    pub at: BootTime,
    /// When the run began that was counted last: none is counted twice, however often its end is written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<BootTime>,
    /// The start that failed, if the last strike was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// A start that failed, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// 126, 127 or 128, as Docker would store it.
    pub code: u32,
    /// A stable code: `command-not-found`.
    pub reason: String,
    pub message: String,
    /// Wall clock, RFC 3339.
    pub at: String,
}

impl Strikes {
    /// When the next try is due.
    pub fn due(&self, delays: &Delays) -> BootTime {
        self.at + delays.after(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delays_are_those_of_docker() {
        let delays = Delays::default();
        let ms: Vec<u128> = (0..13).map(|n| delays.after(n).as_millis()).collect();
        assert_eq!(
            ms,
            [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]
        );
        assert_eq!(delays.after(u32::MAX), MAX);
    }
}
