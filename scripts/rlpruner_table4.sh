#!/usr/bin/env bash
# RL-Pruner, Table 4: compressed networks, and the same architectures trained from scratch.
# usage: scripts/rlpruner_table4.sh [small] [key=value ...]
source "$(dirname "$0")/papers.sh"
run prune rlpruner_table4
for place in "${!settings[@]}"; do # the architectures that an agent has found
  [[ ${settings[place]} =~ ^agent=([a-z]+)$ ]] && settings[place]="like=${BASH_REMATCH[1]}-0.4,${BASH_REMATCH[1]}-0.6,${BASH_REMATCH[1]}-0.8"
done
only like seed device precision channels_last compile debug 'training*' 'paths.*'
run train rlpruner_table4_scratch
report rlpruner_table4
