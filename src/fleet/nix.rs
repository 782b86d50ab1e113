//! Derivations for Nix's remote builders. Main function: [`to_nix`].

use std::fmt::Write;

use super::{FleetPlan, Kind, Unit};

/// A function from `pkgs` with `runCommand`, the driver and the environments to an attribute set with a derivation for each unit. A
/// builder has no network, so what passes between units is a depot in each one's output; the merge's holds the report.
#[must_use]
pub fn to_nix(plan: &FleetPlan) -> String {
    let mut text = "# Made by `kv-correctness plan --format nix`.\n\
        { pkgs, driver, environment, baseline ? environment, path ? [ ], features ? [ ] }:\n\
        let\n  \
          unit = name: needs: command: pkgs.runCommand name {\n    \
            KV_CORRECTNESS_ENV = environment;\n    \
            KV_CORRECTNESS_ENV_BASELINE = baseline;\n    \
            requiredSystemFeatures = features;\n  \
          } ''\n    \
            export PATH=${pkgs.lib.makeBinPath ([ driver ] ++ path)}:$PATH\n    \
            export HOME=$TMPDIR KV_CORRECTNESS_CACHE=$TMPDIR/cache KV_CORRECTNESS_DEPOT=file://$out/depot\n    \
            mkdir -p $out/depot\n    \
            for need in ${toString needs}; do cp -rn --no-preserve=mode $need/depot/. $out/depot/; done\n    \
            cd $out\n    \
            ${command}\n  \
          '';\n\
        in\n\
        rec {\n"
        .to_owned();
    for unit in &plan.units {
        write_unit(&mut text, unit).expect("a string can be written to");
    }
    text + "}\n"
}

fn write_unit(text: &mut String, unit: &Unit) -> std::fmt::Result {
    let needs: Vec<String> = unit.needs.iter().map(|need| quoted(need)).collect();
    let needs: Vec<String> = needs.iter().map(|need| format!("units.{need}")).collect();
    // A verdict is kept whatever it is; without one the derivation fails.
    let command = match unit.kind {
        Kind::Merge => format!(
            "status=0; {} || status=$?; [ \"$status\" != 2 ]; echo \"$status\" > exit-code",
            unit.script()
        ),
        Kind::Arms | Kind::Cell => unit.script(),
    };
    writeln!(
        text,
        "  units.{} = unit {} [ {} ] {};",
        quoted(&unit.id),
        quoted(&unit.id),
        needs.join(" "),
        quoted(&command)
    )
}

/// A text of Nix's.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("\"{escaped}\"")
}
