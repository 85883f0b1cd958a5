#!/usr/bin/env bash
# JAX gives all steps of a Slurm job the same coordinator.
#
# One would guess: two srun commands in one job are two programs that do not know each other, as
# with MPI, and jax.distributed.initialize() keeps them apart.
#
# What happens: the port of the coordinator is computed from SLURM_JOB_ID alone, and its host is the
# first node of the step. Two steps that begin on one node have one address.
#
# Why it matters: one allocation, several runs side by side (`srun ... & srun ... & wait`), is a usual
# way to sweep settings. A way out: a JAX_COORDINATOR_PORT of its own for each step, for example
# from SLURM_STEP_ID.
#
# No Slurm is needed: JAX reads its environment only. The two steps run one after the other here.
# Needs Python 3.11 or later, and 600 MB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2

cat > "$folder/step.py" <<'PYTHON'
import jax
from jax._src import distributed

jax.distributed.initialize()
print(distributed.global_state.coordinator_address)
jax.distributed.shutdown()
PYTHON

address() {  # of a step: its number, and perhaps JAX_COORDINATOR_PORT
    env JAX_PLATFORMS=cpu SLURM_JOB_ID=4711 SLURM_STEP_NODELIST=localhost SLURM_NTASKS=1 \
        SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_STEP_ID="$1" ${2:+JAX_COORDINATOR_PORT=$2} \
        "$folder/venv/bin/python" "$folder/step.py" | tail -n 1
}

first=$(address 0)
second=$(address 1)
other=$(address 1 62057)
"$folder/venv/bin/python" -c 'import jax; print("jax", jax.__version__)'
echo "step 0 of job 4711 meets at $first"
echo "step 1 of job 4711 meets at $second"
echo "step 1 with JAX_COORDINATOR_PORT=62057 meets at $other"
if [[ $first == "$second" && $first == localhost:* && $other == localhost:62057 ]]; then
    echo 'as seen before'
else
    echo 'CHANGED: read the comment of this finding again'
    exit 1
fi
