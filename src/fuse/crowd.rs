//! Whether others want the CPU of a thread that spins.

use std::time::{Duration, Instant};

/// How long a thread makes way, growing while it stays crowded.
const MAKE_WAY: Duration = Duration::from_millis(40);
const MAKE_WAY_MOST: Duration = Duration::from_millis(1280);

/// What the scheduler tells of one thread, and what follows.
#[derive(Debug)]
pub(super) struct Crowd {
    /// How often it is asked.
    every: Duration,
    /// Percent of the time that the thread may wait for a CPU before it makes way.
    share: u64,
    /// Of which thread it was last asked, when, and what it said.
    last: Option<(i32, Instant, u64)>,
    away_until: Option<Instant>,
    away: Option<Duration>,
}

impl Crowd {
    /// Nobody has been looked at yet.
    pub(super) fn new(every: Duration, share: u64) -> Self {
        Self {
            every,
            share,
            last: None,
            away_until: None,
            away: None,
        }
    }

    /// Looks at the thread, which spins; whether it must not, now and for a while.
    pub(super) fn is_around(&mut self, thread: i32, now: Instant) -> bool {
        if self.is_avoided(now) {
            return true;
        }
        let waited = self.waited(thread, now);
        self.is_crowded(waited, now)
    }

    /// Whether it is crowded where the thread waited for so many percent of the time.
    fn is_crowded(&mut self, waited: Option<u64>, now: Instant) -> bool {
        let Some(waited) = waited else { return false };
        if waited <= self.share {
            self.away = None;
            return false;
        }
        let away = self
            .away
            .map_or(MAKE_WAY, |away| (away * 2).min(MAKE_WAY_MOST));
        self.away = Some(away);
        self.away_until = Some(now + away);
        true
    }

    /// Whether it makes way still.
    pub(super) fn is_avoided(&mut self, now: Instant) -> bool {
        if self.away_until.is_some_and(|until| now >= until) {
            self.away_until = None;
            self.last = None;
        }
        self.away_until.is_some()
    }

    /// The thread does not spin now: what it waits for meanwhile says nothing of what follows.
    pub(super) fn look_away(&mut self) {
        self.last = None;
    }

    /// Percent of the time since the last look at the thread that it waited for a CPU; `None` if it is too early to tell.
    fn waited(&mut self, thread: i32, now: Instant) -> Option<u64> {
        let last = self.last.filter(|&(of, ..)| of == thread);
        if last.is_some_and(|(_, last, _)| now - last < self.every) {
            return None;
        }
        // Nanoseconds on a CPU, nanoseconds waiting for one, number of time slices.
        let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        let delay: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        self.last = Some((thread, now, delay));
        let (_, then, before) = last?;
        let elapsed = u64::try_from((now - then).as_nanos()).ok()?.max(1);
        Some(delay.saturating_sub(before).saturating_mul(100) / elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::seats::own_thread;
    use super::*;

    const EVERY: Duration = Duration::from_millis(4);

    #[test]
    fn one_look_has_nothing_to_compare_with_and_the_second_has() {
        let mut crowd = Crowd::new(EVERY, 8);
        let now = Instant::now();
        assert_eq!(crowd.waited(own_thread(), now), None);
        assert_eq!(crowd.waited(own_thread(), now + EVERY / 2), None);
        assert!(crowd.waited(own_thread(), now + EVERY).is_some());
    }

    #[test]
    fn what_another_thread_waited_for_is_not_compared_with() {
        let mut crowd = Crowd::new(EVERY, 8);
        let now = Instant::now();
        crowd.last = Some((own_thread() + 1, now, 0));
        assert_eq!(crowd.waited(own_thread(), now + EVERY), None);
        crowd.waited(own_thread(), now + EVERY);
        crowd.look_away();
        assert_eq!(crowd.waited(own_thread(), now + EVERY * 2), None);
    }

    #[test]
    fn who_had_to_wait_makes_way_longer_each_time_until_there_is_room() {
        let mut crowd = Crowd::new(EVERY, 8);
        let mut now = Instant::now();
        let makes_way = |crowd: &mut Crowd, now: &mut Instant| {
            assert!(crowd.is_crowded(Some(9), *now));
            let from = *now;
            while crowd.is_avoided(*now) {
                *now += Duration::from_millis(10);
            }
            *now - from
        };
        assert!(!crowd.is_crowded(Some(8), now));
        for times in [1, 2, 4, 8, 16, 32, 32] {
            assert_eq!(makes_way(&mut crowd, &mut now), MAKE_WAY * times);
        }
        assert!(!crowd.is_crowded(None, now));
        assert!(!crowd.is_crowded(Some(0), now));
        assert_eq!(makes_way(&mut crowd, &mut now), MAKE_WAY);
    }
}
