#!/bin/bash
# One run on several nodes under Slurm, which goes on by itself: after the end of its time, after it
# was preempted, and after a node was lost. Submit it from the checkout, with the arguments of main.py:
#
#     sbatch scripts/slurm_train.sh --config=configs/sketch_vit.py --workdir=/shared/runs/big
#
# Data and workdir have to be on a disk that all nodes share. Options of sbatch on the command line,
# as in `sbatch --nodes=4 scripts/slurm_train.sh ...`, count more than those below. A study as an
# array of jobs that share one workdir, each with one GPU:
#
#     sbatch --array=0-7 --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 scripts/slurm_train.sh \
#         study --config=configs/studies/digits.py --workdir=/shared/runs/study

#SBATCH --job-name=atelier
#SBATCH --nodes=2
# One process per GPU. --gpus-per-task would hide the other GPUs of the node, which JAX counts.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# So long before the end of the time, every process of the step is told to save and stop. Without
# "B:", which would tell this script only.
#SBATCH --signal=TERM@120
# The job may start again, under the same number, and its log goes on where it was.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

# Where the run is; without a workdir of its own, each start would be another run.
workdir= last=
for argument in "$@"; do
    [[ $argument =~ ^--?workdir= ]] && workdir=${argument#*=}
    [[ $last =~ ^--?workdir$ ]] && workdir=$argument
    last=$argument
done
if [[ -z $SLURM_JOB_ID || -z $workdir ]]; then
    echo "slurm_train.sh: submit it by sbatch, and give --workdir=DIR, where the run goes on." >&2
    exit 2
fi

# This script outlives the signal, to see how the processes have ended.
trap : TERM

# From Slurm 22.05 on, srun does not take the number of cores from the job.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
srun --kill-on-bad-exit=0 "${PYTHON:-python}" main.py "$@"
code=$?

# In an array of jobs, the number of the last one may mean all of them.
job=$SLURM_JOB_ID
[[ -n $SLURM_ARRAY_TASK_ID ]] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# Nothing was cancelled as long as Slurm counts the job as running.
if [[ $(squeue --noheader --job="$job" --format=%T) != RUNNING ]]; then
    exit $code
fi

# The checkpoints, and of a study the cells that are over, until now.
reached() {
    find "$workdir" \( -path '*/checkpoints/[0-9]*' -o -name cell.json \) -prune \
        2>/dev/null | sort
}

note="slurm-$job.reached"
case $code in
    75) ;;  # told to stop, and saved
    0 | 2)  # done, or a mistake that another start would repeat
        rm -f "$note"
        exit $code ;;
    *)  # A process or a node was lost, or the run failed: once more, unless that happened before
        # and nothing was reached since.
        if [[ -e $note && $(reached) == "$(cat "$note")" ]]; then
            echo "slurm_train.sh: exit code $code without a new checkpoint: not requeued." >&2
            rm -f "$note"
            exit $code
        fi
        reached > "$note" ;;
esac
echo "slurm_train.sh: exit code $code, requeued." >&2
scontrol requeue "$job"
