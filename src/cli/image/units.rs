//! Sizes and ages as docker prints them.

/// `8.46MB`: decimal units, three significant digits, as docker's go-units has them.
pub(in crate::cli) fn size(bytes: u64) -> String {
    human(bytes, 3)
}

/// The same with as many digits as asked for; podman's `tree` shows four.
#[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
pub(super) fn human(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // What would be rounded up to 1000 belongs to the next unit.
    let limit = 1000.0 - 0.5 * 10f64.powi(3 - i32::try_from(digits).unwrap_or(3));
    while value >= limit && unit + 1 < UNITS.len() && (value >= 1000.0 || unit > 0) {
        value /= 1000.0;
        unit += 1;
    }
    let whole = if value >= 100.0 {
        3
    } else if value >= 10.0 {
        2
    } else {
        1
    };
    let mut text = format!("{value:.*}", digits.saturating_sub(whole));
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + UNITS[unit]
}

/// `3 weeks ago`, as docker's go-units has it.
pub(super) fn age(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let text = match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        MINUTE..120 => "About a minute".to_owned(),
        120..HOUR => format!("{} minutes", seconds / MINUTE),
        // Go rounds hours.
        HOUR..5400 => "About an hour".to_owned(),
        _ => {
            let hours = (seconds + HOUR / 2) / HOUR;
            match hours {
                ..48 => format!("{hours} hours"),
                48..336 => format!("{} days", hours / 24),
                336..1440 => format!("{} weeks", hours / 24 / 7),
                1440..17520 => format!("{} months", hours / 24 / 30),
                _ => format!("{} years", seconds / (365 * DAY)),
            }
        }
    };
    text + " ago"
}

/// Reads `10G`, `512MiB`, `1000`: powers of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let power = match unit
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => 9,
    };
    let number = number.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(1u64.checked_shl(10 * power)?))
        .filter(|_| power < 9)
        .ok_or_else(|| "say a number of bytes, or one with K, M, G or T".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_decimal_units() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (8_456_000, "8.46MB"),
            (8_400_000, "8.4MB"),
            (124_300_000, "124MB"),
            (999_949, "1MB"),
            (1_020_000_000, "1.02GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
        assert_eq!(human(58_470_000, 4), "58.47MB");
        assert_eq!(human(429_910_000, 4), "429.9MB");
    }

    #[test]
    fn ages_are_dockers() {
        const DAY: i64 = 86400;
        for (seconds, text) in [
            (0, "Less than a second ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "About a minute ago"),
            (120, "2 minutes ago"),
            (3599, "59 minutes ago"),
            (3600, "About an hour ago"),
            (2 * 3600, "2 hours ago"),
            (47 * 3600, "47 hours ago"),
            (2 * DAY, "2 days ago"),
            (13 * DAY, "13 days ago"),
            (14 * DAY, "2 weeks ago"),
            (59 * DAY, "8 weeks ago"),
            (60 * DAY, "2 months ago"),
            (729 * DAY, "24 months ago"),
            (730 * DAY, "2 years ago"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn sizes_are_read_with_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("1k", 1024),
            ("2M", 2 << 20),
            ("3GiB", 3 << 30),
            ("1TB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1X", "-1", "1.5G", "99999999999T"] {
            parse_size(text).unwrap_err();
        }
    }
}
