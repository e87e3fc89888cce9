#!/usr/bin/env bash
# The whole run: data, initial policy, reward model, PPO from several seeds, evaluation. From the root of the repository:
#   bash benchmarks/human_sentiment/run.sh 0 1 2
set -euo pipefail
root=runs/human_sentiment
here=benchmarks/human_sentiment
python=${PYTHON:-python}
[ -d "$root/data" ] || $python -m benchmarks.human_sentiment.prepare --root "$root"
[ -d "$root/sft/export" ] || $python -m lit_rlhf fit -c $here/sft.yaml
[ -d "$root/reward/export" ] || $python -m lit_rlhf fit -c $here/reward.yaml
policies=()
for seed in "${@:-0}"; do
    # The seed's own directories and draws, everything else as in the file.
    sed "s#$root/policy#$root/ppo-$seed#; s/seed: 0/seed: $seed/" $here/policy.yaml > "$root/ppo-$seed.yaml"
    [ -d "$root/ppo-$seed/checkpoints" ] || $python -m lit_rlhf fit -c "$root/ppo-$seed.yaml" -c $here/ppo.yaml
    policies+=("ppo-$seed/checkpoints")
done
$python -m benchmarks.human_sentiment.evaluate --root "$root" --policies "${policies[@]}"
