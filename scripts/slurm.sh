#!/usr/bin/env bash
# One run on several machines under Slurm, which goes on by itself when it is preempted or out of time:
#
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh --model-size 1.5x --train-dir D --val-dir V
#
# Everything after the script's name is train.py's. The environment that has torchrun must be active when
# sbatch is called, and --save, --train-dir and --val-dir must mean the same on all machines. When it is
# preempted, the run has as long to save as the cluster's KillWait or GraceTime.

#SBATCH --job-name=shufflenetv2
#SBATCH --ntasks-per-node=1      # torchrun, which starts a process for each GPU
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue                # back into the queue when it is preempted
#SBATCH --signal=B:USR1@120      # two minutes before the time is up, to this script
#SBATCH --open-mode=append

set -uo pipefail
first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))    # jobs that share a machine do not meet
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100 # seconds that torchrun leaves for saving; 30 otherwise

# PROCESSES=2 starts so many on each machine, for machines without GPUs. srun does not take
# --cpus-per-task over from sbatch (since 22.05), and torchrun could be left with one core.
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" \
    torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first_machine:$port" \
    train.py "$@" &

out_of_time() {
    scancel --signal=TERM "$SLURM_JOB_ID" # all processes save and end; this script is not among them
    wait
    scontrol requeue "$SLURM_JOB_ID"
}
trap out_of_time USR1
wait $!
