# shellcheck shell=bash
# What the scripts of the papers' tables share; each sources this file with its arguments: [small] [key=value ...]
# `small` takes the edition that two CPU cores can do. Start the same line again to go on where it was killed, or to add seed=3.
set -euo pipefail
edition=""
[[ ${1:-} == small ]] && edition=_small && shift
settings=("$@")
status=0

run() { # COMMAND EXPERIMENT: what fails leaves a hole in the table
  rlprune "$1" "experiment=$2$edition" ${settings[@]+"${settings[@]}"} || status=$?
}

only() { # PATTERN ...: keep the settings whose keys match
  local kept=() setting pattern
  for setting in ${settings[@]+"${settings[@]}"}; do
    for pattern in "$@"; do
      # shellcheck disable=SC2053
      [[ ${setting%%=*} == $pattern ]] && kept+=("$setting") && break
    done
  done
  settings=(${kept[@]+"${kept[@]}"})
}

folder() { # EXPERIMENT: where its runs are
  local setting outputs=outputs
  for setting in ${settings[@]+"${settings[@]}"}; do
    [[ $setting == paths.outputs=* ]] && outputs=${setting#*=}
  done
  outputs=${outputs#[\"\']} # quotes are Hydra's
  outputs=${outputs%[\"\']}
  echo "$outputs/$1$edition"
}

report() { # TABLE
  only 'paths.outputs'
  rlprune report "table=$1$edition" ${settings[@]+"${settings[@]}"}
  exit "$status"
}
