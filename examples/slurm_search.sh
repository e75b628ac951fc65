#!/bin/bash
# A search and a retraining on a cluster with SLURM. Preempted, or out of time, the job is queued
# again and goes on at the iteration where it was:
#
#     sbatch slurm_search.sh path/to/cifar10 runs/cifar --seed 1
#
#SBATCH --job-name=asng
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120

data=$1
run=$2
shift 2

# Runs a command. SLURM queues a job again that it has preempted; one whose time is nearly over, which
# has been told so by SIGUSR1, does that itself.
step() {
    srun "$@"
    local status=$?
    if [ $status -eq $((128 + $(kill -l USR1))) ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    [ $status -eq 0 ] || exit $status
}

step asng search classification --data "$data" --out "$run" --resume-if-exists "$@"
step asng retrain "$run"
