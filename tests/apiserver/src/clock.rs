//! Wall-clock timestamps as the API writes them (RFC 3339, UTC), and ages as kubectl prints them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

/// Now, in whole seconds, as in `2026-01-31T12:00:00Z`.
#[must_use]
pub(crate) fn now() -> String {
    after(Duration::ZERO)
}

/// The moment `delay` from now, in whole seconds.
#[must_use]
pub(crate) fn after(delay: Duration) -> String {
    format!("{}Z", civil(since_epoch().saturating_add(delay).as_secs()))
}

/// Now, with nanoseconds.
#[must_use]
pub(crate) fn now_nano() -> String {
    let now = since_epoch();
    format!("{}.{:09}Z", civil(now.as_secs()), now.subsec_nanos())
}

/// Time since the Unix epoch.
#[must_use]
pub(crate) fn since_epoch() -> Duration {
    // A clock before 1970 would be a machine without one; counting from zero is as good as any answer then.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// How long ago `timestamp` was, as kubectl prints it: `42s`, `5m30s`, `3h12m`, `2d4h`, `20d`.
#[must_use]
pub(crate) fn age(timestamp: &str) -> String {
    let Some(then) = parse(timestamp) else { return "<unknown>".to_owned() };
    human(since_epoch().as_secs().saturating_sub(then))
}

fn human(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / DAY);
    let two = |big: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

/// Days-to-date after the proleptic Gregorian calendar, counted in eras of 400 years that begin in March.
fn civil(seconds: u64) -> String {
    let (days, time) = (seconds / DAY + 719_468, seconds % DAY);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

fn parse(timestamp: &str) -> Option<u64> {
    let part = |range: std::ops::Range<usize>| timestamp.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(days * DAY + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_and_read_back_across_leap_years() {
        for (seconds, written) in [
            (0, "1970-01-01T00:00:00"),
            (951_827_696, "2000-02-29T12:34:56"),
            (1_709_210_096, "2024-02-29T12:34:56"),
            (1_767_225_599, "2025-12-31T23:59:59"),
        ] {
            assert_eq!(civil(seconds), written);
            assert_eq!(parse(written), Some(seconds));
        }
    }

    #[test]
    fn ages_are_printed_as_kubectl_prints_them() {
        for (seconds, printed) in [
            (0, "0s"),
            (119, "119s"),
            (150, "2m30s"),
            (180, "3m"),
            (7200, "120m"),
            (90_000, "25h"),
            (864_000, "10d"),
        ] {
            assert_eq!(human(seconds), printed);
        }
    }
}
