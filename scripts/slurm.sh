#!/usr/bin/env bash
# Train on several machines under Slurm. The job returns to the queue and continues when it is preempted or out of time.
#
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh --model-size 1.5x --train-dir D --val-dir V
#
# The arguments after the name of the script are options of train.py. Activate the environment that has torchrun before
# calling sbatch. --save, --train-dir and --val-dir must be the same folders on all machines. A preempted run has the time
# of the cluster's KillWait or GraceTime to save a checkpoint.

#SBATCH --job-name=shufflenetv2
#SBATCH --ntasks-per-node=1      # torchrun, which starts one process per GPU
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue                # return to the queue after preemption
#SBATCH --signal=B:USR1@120      # two minutes before the time limit, sent to this script
#SBATCH --open-mode=append

set -uo pipefail
first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))    # different for jobs that share a machine
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100 # seconds that torchrun waits for processes to save; default 30

# PROCESSES=2 starts two processes on each machine, for machines without GPUs. Since Slurm 22.05, srun ignores the
# --cpus-per-task of sbatch; without it torchrun could get a single core.
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" \
    torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first_machine:$port" \
    train.py "$@" &

out_of_time() {
    scancel --signal=TERM "$SLURM_JOB_ID" # all processes save and end; the signal does not reach this script
    wait
    scontrol requeue "$SLURM_JOB_ID"
}
trap out_of_time USR1
wait $!
