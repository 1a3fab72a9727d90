use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

/// A link of one channel and one worker, and its clock.
struct Measured {
    link: LinkRate,
    now: Duration,
}

impl Measured {
    fn new() -> Self {
        Self { link: LinkRate::new(1, 1), now: Duration::from_secs(5) }
    }

    /// Packets of 1 MB, each with so many milliseconds of pool, idleness and link, one after the other.
    fn packets(&mut self, count: u32, encoding: u32, idle: u32, writing: u32) -> f64 {
        for _ in 0..count {
            self.link.encoded(MILLISECOND * encoding);
            self.now += MILLISECOND * (encoding.max(idle) + writing);
            self.link.written(self.now, 1_000_000, MILLISECOND * writing);
        }
        self.link.rate().expect("there were windows")
    }
}

#[test]
fn nothing_is_known_before_the_buffer_of_a_socket_is_full() {
    let mut link = LinkRate::new(1, 1);
    for packet in 1..=4 {
        link.written(MILLISECOND * packet, 1_000_000, MILLISECOND);
        assert_eq!(link.rate(), None);
    }
    link.written(MILLISECOND * 5, 1_000_000, MILLISECOND);
    assert_eq!(link.rate(), Some(1e9));
}

#[test]
fn a_link_that_is_always_busy_has_the_rate_at_which_bytes_get_through() {
    let mut measured = Measured::new();
    // 1 MB in 8 ms.
    assert!((measured.packets(100, 0, 0, 8) - 125e6).abs() < 1e6);
}

#[test]
fn several_channels_share_the_rate() {
    let mut link = LinkRate::new(4, 1);
    for packet in 1..=100_u32 {
        // Each writes all the time, and one of them ends its packet every 2 ms.
        link.written(MILLISECOND * packet * 2, 1_000_000, MILLISECOND * 8);
    }
    assert!((link.rate().expect("windows") - 500e6).abs() < 5e6, "{link:?}");
}

#[test]
fn a_link_that_waits_for_the_pool_is_trusted_with_more_until_it_is_busy() {
    let mut measured = Measured::new();
    let slow = measured.packets(100, 0, 0, 8);
    let trusted = measured.packets(100, 4, 0, 1);
    assert!(trusted > slow * 4.0 && trusted <= 1e9, "{trusted}");
    assert!(measured.packets(100, 0, 0, 8) < slow * 1.01);
}

#[test]
fn a_link_that_waits_for_pages_tells_nothing() {
    let mut measured = Measured::new();
    measured.packets(100, 0, 0, 8);
    // The window in which it changed has something of both.
    let rate = measured.packets(10, 0, 20, 1);
    assert_eq!(measured.packets(100, 0, 20, 1), rate);
}

#[test]
fn a_single_slow_write_counts_at_once_and_only_halfway() {
    let mut measured = Measured::new();
    let rate = measured.packets(100, 0, 0, 1);
    // A hundredth of the rate.
    let after = measured.packets(1, 0, 0, 100);
    assert!((after / rate - 0.1).abs() < 0.01, "{rate} {after}");
}

#[test]
fn a_clock_that_stands_still_makes_no_link_infinite() {
    let mut link = LinkRate::new(1, 1);
    (0..100).for_each(|_| link.written(MILLISECOND, 1_000_000, Duration::ZERO));
    assert!(link.rate().is_some_and(f64::is_finite), "{link:?}");
}
