//! Repetitions of two programs, side by side.

use crate::migration::Measurement;
use std::fmt;

/// The middle and the ends of a set of figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

/// What a scenario's measurements say. Displays as a table.
#[derive(Clone, Debug)]
pub struct Summary<'a> {
    measurements: &'a [Measurement],
}

/// Each program with the number of channels that suits it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Channels and median total time in milliseconds.
    pub limosa: (u8, f64),
    /// As before.
    pub qemu: (u8, f64),
}

/// A row of the table: a name, a figure, and how many decimals of it mean something.
type Row = (&'static str, fn(&Measurement) -> f64, usize);

const ROWS: [Row; 8] = [
    ("total time, ms", |one| one.total_ms as f64, 0),
    ("wall clock, ms", |one| one.wall_ms, 0),
    ("downtime, ms", |one| one.downtime_ms, 1),
    ("wait for a page, us", |one| one.fault_wait_us, 0),
    ("transferred, MB", |one| one.transferred as f64 / 1e6, 1),
    ("guest RAM, GB/s", |one| one.guest_gb_per_s, 2),
    ("source CPU, ms", |one| one.source_cpu_ms, 0),
    ("destination CPU, ms", |one| one.destination_cpu_ms, 0),
];

impl Spread {
    /// Of `figures`; `None` if there are none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let upper = figures.len() / 2;
        let lower = (figures.len() - 1) / 2;
        Some(Self { median: (figures[lower] + figures[upper]) / 2.0, least, most })
    }
}

impl<'a> Summary<'a> {
    /// Of the measurements of one scenario.
    pub fn of(measurements: &'a [Measurement]) -> Self {
        Self { measurements }
    }

    /// Both programs at their best, if both were measured.
    pub fn best(&self) -> Option<Best> {
        let best_of = |program: &str| {
            let mut medians: Vec<(u8, f64)> = Vec::new();
            for channels in self.measurements.iter().map(|one| one.channels) {
                let alike =
                    self.measurements.iter().filter(|one| (one.program, one.channels) == (program, channels));
                medians.extend(
                    Spread::of(alike.map(|one| one.total_ms as f64)).map(|spread| (channels, spread.median)),
                );
            }
            medians.into_iter().min_by(|one, other| one.1.total_cmp(&other.1))
        };
        Some(Best { limosa: best_of("limosa")?, qemu: best_of("qemu")? })
    }

    /// A figure of one program.
    pub fn spread(&self, program: &str, figure: fn(&Measurement) -> f64) -> Option<Spread> {
        Spread::of(self.measurements.iter().filter(|one| one.program == program).map(figure))
    }

    /// The median of Limosa's figure over the median of QEMU's, if both were measured.
    pub fn ratio(&self, figure: fn(&Measurement) -> f64) -> Option<f64> {
        let ours = self.spread("limosa", figure)?.median;
        let theirs = self.spread("qemu", figure)?.median;
        (theirs != 0.0).then(|| ours / theirs)
    }
}

impl fmt::Display for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limosa, qemu } = self;
        write!(f, "best total time: limosa {:.0} ms with {} channels, ", limosa.1, limosa.0)?;
        write!(f, "qemu {:.0} ms with {}, ratio {:.2}", qemu.1, qemu.0, limosa.1 / qemu.1)
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20}{:>26}{:>26}{:>8}", "median [range]", "limosa", "qemu", "ratio")?;
        let is_known = |row: &Row| self.measurements.iter().any(|one| row.1(one) != 0.0);
        for (name, figure, decimals) in ROWS.into_iter().filter(is_known) {
            let cell = |program| match self.spread(program, figure) {
                Some(Spread { median, least, most }) => {
                    format!("{median:.decimals$} [{least:.decimals$}-{most:.decimals$}]")
                }
                None => "-".to_owned(),
            };
            let ratio = self.ratio(figure).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            writeln!(f, "{name:<20}{:>26}{:>26}{ratio:>8}", cell("limosa"), cell("qemu"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(odd, Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }
}
