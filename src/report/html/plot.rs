//! Dots over a logarithmic scale of nats: how far questions move, along a property of their prompts. Main type: [`Plot`].

use std::collections::BTreeSet;
use std::fmt::Write;

const LEFT: f64 = 46.0;
const RIGHT: f64 = 350.0;
const TOP: f64 = 10.0;
/// Where the scale's smallest value stands; equal bits stand below, on a line of their own.
const FLOOR: f64 = 160.0;
const EQUAL: f64 = 186.0;
/// Dots are put on a grid of this size, and each place is drawn once: a picture of 14 thousand questions stays small.
const GRID: f64 = 2.0;

/// One question: its place along the axis, its movement in nats with LMCache, and that of the control.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dot {
    pub(super) along: u32,
    pub(super) load: f64,
    pub(super) control: Option<f64>,
}

/// A picture.
pub(super) struct Plot {
    /// For the elements' ids.
    pub(super) name: String,
    pub(super) title: String,
    pub(super) axis: &'static str,
    pub(super) load: String,
    pub(super) control: String,
    pub(super) y_ticks: Vec<(String, String)>,
    pub(super) x_ticks: Vec<(String, String)>,
}

impl Plot {
    pub(super) fn of(name: String, title: String, axis: &'static str, dots: &[Dot]) -> Self {
        let (low, high) = decades(dots);
        let y = |nats: f64| {
            if nats <= 0.0 {
                return EQUAL;
            }
            let height = (nats.log10() - f64::from(low)) / f64::from(high - low);
            FLOOR - (FLOOR - TOP) * height.clamp(0.0, 1.0)
        };
        let along = || dots.iter().map(|dot| dot.along);
        let (first, last) = (along().min().unwrap_or(0), along().max().unwrap_or(0));
        let step = step(last - first);
        let (from, to) = if first == last {
            (first.saturating_sub(step), last.saturating_add(step)) // in the middle
        } else {
            (first / step * step, last.div_ceil(step) * step)
        };
        let x =
            |along: u32| LEFT + 6.0 + (RIGHT - LEFT - 12.0) * f64::from(along - from) / f64::from(to - from);
        let every = ((high - low) / 5 + 1).max(1);
        let exponents = (low..=high).filter(|exponent| (high - exponent) % every == 0);
        Self {
            name,
            title,
            axis,
            load: path(dots.iter().map(|dot| (x(dot.along), y(dot.load)))),
            control: path(dots.iter().filter_map(|dot| Some((x(dot.along), y(dot.control?))))),
            y_ticks: exponents
                .map(|exponent| (format!("{:.1}", y(10f64.powi(exponent))), decade(exponent)))
                .collect(),
            x_ticks: (from..=to)
                .step_by(step as usize)
                .map(|along| (format!("{:.1}", x(along)), along.to_string()))
                .collect(),
        }
    }
}

/// The powers of ten that hold all movements, at least two.
fn decades(dots: &[Dot]) -> (i32, i32) {
    let moved =
        || dots.iter().flat_map(|dot| [Some(dot.load), dot.control]).flatten().filter(|nats| *nats > 0.0);
    let exponent = |nats: f64| nats.log10().clamp(-12.0, 3.0);
    #[expect(clippy::cast_possible_truncation, reason = "between -12 and 3")]
    let (low, high) = (
        moved().map(exponent).fold(f64::INFINITY, f64::min).min(0.0).floor() as i32,
        moved().map(exponent).fold(f64::NEG_INFINITY, f64::max).max(-12.0).ceil() as i32,
    );
    if moved().next().is_none() { (-6, 0) } else { (low, high.max(low + 2)) }
}

fn decade(exponent: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    match exponent {
        0 => "1".to_owned(),
        1 => "10".to_owned(),
        _ => {
            let sign = if exponent < 0 { "⁻" } else { "" };
            let digits = exponent.unsigned_abs().to_string();
            let raised: String =
                digits.bytes().filter_map(|digit| DIGITS.get(usize::from(digit - b'0'))).collect();
            format!("10{sign}{raised}")
        }
    }
}

/// A distance between marks of which a range has at most six.
fn step(range: u32) -> u32 {
    let sizes = (0..9).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u32.pow(power)));
    sizes.into_iter().find(|size| range / size < 5).unwrap_or(1_000_000_000)
}

/// Dots as one path of lines without length, which round ends make visible.
fn path(dots: impl Iterator<Item = (f64, f64)>) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "within the picture")]
    let places: BTreeSet<(i32, i32)> =
        dots.map(|(x, y)| ((x / GRID).round() as i32, (y / GRID).round() as i32)).collect();
    let mut path = String::new();
    for (x, y) in places {
        write!(path, "M{} {}h0", f64::from(x) * GRID, f64::from(y) * GRID)
            .expect("a string can be written to");
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(dots: &[Dot]) -> Plot {
        Plot::of("p".to_owned(), "Title".to_owned(), "tokens", dots)
    }

    #[test]
    fn equal_bits_stand_below_the_scale_and_larger_movements_higher() {
        let dot = |along, load| Dot { along, load, control: None };
        let plot = plot(&[dot(0, 0.0), dot(50, 1e-6), dot(100, 1.0)]);
        let heights: Vec<&str> =
            plot.load.split('M').skip(1).filter_map(|dot| dot.split([' ', 'h']).nth(1)).collect();
        assert_eq!(heights, ["186", "160", "10"]);
        let words: Vec<&str> = plot.y_ticks.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(words, ["10⁻⁶", "10⁻⁴", "10⁻²", "1"]);
    }

    #[test]
    fn any_dots_make_a_picture_within_its_frame_and_of_bounded_size() {
        let many: Vec<Dot> = (0..20_000)
            .map(|number| Dot {
                along: number,
                load: f64::from(number % 997) * 1e-3,
                control: Some(f64::from(number % 89) * 1e-9),
            })
            .collect();
        let one = [Dot { along: u32::MAX / 2, load: 1e-30, control: Some(1e9) }];
        for dots in [&[][..], &one[..], &many[..]] {
            let plot = plot(dots);
            assert!(plot.load.len() < 300_000 && plot.x_ticks.len() <= 7 && plot.y_ticks.len() <= 7);
            for dot in plot.load.split('M').chain(plot.control.split('M')).filter(|dot| !dot.is_empty()) {
                let (x, y) = dot.trim_end_matches("h0").split_once(' ').unwrap();
                assert!(
                    (LEFT..=RIGHT).contains(&x.parse().unwrap())
                        && (TOP..=EQUAL).contains(&y.parse().unwrap())
                );
            }
        }
    }
}
