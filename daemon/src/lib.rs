//! What Fairlead's daemons do alike, `fairlead-proxy run` and `fairlead-cni node`: their logs, and how their metrics are
//! written and served.
//!
//! [`log`] has the options and levels of the log, [`repeated`] keeps what is said again and again from filling it;
//! [`exposition`] writes pages of metrics, [`process`] those that every process has, [`page`] serves them.

pub mod exposition;
pub mod log;
pub mod page;
pub mod process;
pub mod repeated;
