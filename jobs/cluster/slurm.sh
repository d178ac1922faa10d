#!/bin/bash
# Made by `segray submit --slurm --dry-run`; by hand: sbatch FILE; again, it continues where it stopped.
# Exit codes of segray: 1 and signals (lost nodes, time limit) requeue it, 3 times;
# 2 (settings), 3 (too many rejects), 5 (refused) need a person; 4 (nothing to do) is success.
#SBATCH --job-name=labels
#SBATCH --comment=segray:4d1f008eebe59a29
#SBATCH --output=labels-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -u
unset "${!SEGRAY_@}"  # of the submitter: they would override the settings below

settings=$(mktemp)
cat > "$settings" <<'END-OF-SETTINGS'
sources:
- s3://BUCKET/photos
output: s3://BUCKET/labels
END-OF-SETTINGS

if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    # A Ray for this job only: its own ports, its own folders, a token that only this job knows.
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname -I | cut -d' ' -f1)  # not a loopback one
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since Slurm 22.05 it is not inherited
    port=$((20000 + SLURM_JOB_ID * 7 % 20000))
    common="--block --disable-usage-stats --dashboard-agent-listen-port=0 --num-cpus=$SLURM_CPUS_PER_TASK"
    log="labels-$SLURM_JOB_ID-ray.log" folder="/tmp/segray-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes=1 --ntasks=1 --nodelist="$first" ray start --head --include-dashboard=false $common \
        --node-ip-address="${address:=127.0.0.1}" --port="$port" --temp-dir="$folder" > "$log" 2>&1 &
    srun --nodes=$others --ntasks=$others --exclude="$first" ray start --address="$address:$port" $common \
        >> "$log" 2>&1 &
    export SEGRAY_RAY__ADDRESS="$address:$port" SEGRAY_RAY__NODES=$SLURM_JOB_NUM_NODES
fi

segray annotate --config "$settings" &
job=$!
trap 'kill -TERM $job' TERM INT
wait $job; code=$?
while kill -0 $job 2> /dev/null; do wait $job; code=$?; done
rm -f "$settings"
kill $(jobs -p) 2> /dev/null
wait
[ $code = 0 ] && [ -n "${folder:-}" ] && srun rm -rf "$folder"
case $code in
    4) code=0 ;;
    0 | 2 | 3 | 5) ;;
    *) if [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
           echo "segray: exit $code; requeued"
           scontrol requeue "$SLURM_JOB_ID"
           sleep 60
       fi ;;
esac
exit $code
