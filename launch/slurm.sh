#!/usr/bin/env bash
# Trains on a SLURM cluster, one task a GPU, and queues itself again until done.
#
#   sbatch --nodes=4 launch/slurm.sh --config=xlmr_base --workdir=/shared/run
#
# What stands here can be changed there. The workdir must be one that all nodes
# see. Each task logs to WORKDIR/logs/slurm-JOB-attempt-K/process-I-NODE.log.
#SBATCH --job-name=mlir_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# To the tasks, not to this script: they save and end with 75 in time.
#SBATCH --signal=TERM@300
set -uo pipefail

# Once a task has ended, what the others may take before they are killed; more
# than the config's hosts.silent_seconds.
LIMIT=300
# Starts in a row that may bring no new checkpoint.
RETRIES=3

say() { echo "slurm.sh: $*" >&2; }
refuse() {
  say "$*"
  exit 2
}

# Before any arithmetic: in it the shell runs what a text like a[$(command)]
# says, and takes 010 for eight.
is_whole() { [[ $1 =~ ^(0|[1-9][0-9]{0,17})$ ]]; }
number() {
  is_whole "$2" || refuse "$(printf '%s=%q: not a whole number.' "$1" "$2")"
}

[[ -n ${SLURM_JOB_ID:-} ]] ||
  refuse "Start it by: sbatch launch/slurm.sh --config=... --workdir=..."
number SLURM_JOB_ID "$SLURM_JOB_ID"
number SLURM_RESTART_COUNT "${SLURM_RESTART_COUNT:=0}"
number SLURM_CPUS_PER_TASK "${SLURM_CPUS_PER_TASK:=1}"
workdir=''
for argument; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
[[ -n $workdir ]] || refuse "Give --workdir=FOLDER behind the script's name."
# As the trainer does: the shell leaves a ~ behind a = as it is.
[[ $workdir != \~/* ]] || workdir=$HOME/${workdir:2}
[[ $workdir != *://* ]] || refuse "--workdir=$workdir: give a shared folder."
[[ $workdir != -* ]] || workdir=./$workdir # It is not a flag.
[[ $workdir != *[%\\]* ]] ||
  refuse "--workdir=$workdir: srun reads % and \\ in the name of a log; give" \
    "another folder."
# JAX gives each task the GPU of its number on the node: more GPUs would idle.
tasks=${SLURM_NTASKS_PER_NODE:-1}
number SLURM_NTASKS_PER_NODE "$tasks"
[[ ${SLURM_GPUS_ON_NODE:-$tasks} == "$tasks" ]] ||
  refuse "$SLURM_GPUS_ON_NODE GPUs and $tasks tasks a node: give" \
    "--ntasks-per-node and --gpus-per-node the same number."

# Huge pages are worth a third of the speed on a CPU.
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}

# The step of the last whole checkpoint; -1 before there is one.
last_step() {
  local path name last=-1
  for path in "$workdir"/checkpoints/*/; do
    name=${path%/}
    name=${name##*/}
    [[ $name =~ ^(0|[1-9][0-9]{0,17})$ ]] && ((name > last)) && last=$name
  done
  echo "$last"
}

attempt=$((SLURM_RESTART_COUNT + 1))
mkdir -p "$workdir/logs" || refuse "Cannot write to $workdir/logs."
# A new one: in a folder that others share nothing of theirs is written to.
while logs=$workdir/logs/slurm-$SLURM_JOB_ID-attempt-$attempt &&
  [[ -e $logs || -L $logs ]]; do
  ((attempt++))
done
mkdir "$logs" || refuse "Cannot write to $workdir/logs."
say "Attempt $attempt on $SLURM_JOB_NODELIST; logs in $logs."
before=$(last_step)

# What the tasks know each other by: in their environment, not on a command
# line, which all users can see. A new one for each start.
MLIR_JAX_SECRET=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
export MLIR_JAX_SECRET
unset MLIR_JAX_SECRET_FILE

# No task's end may end the others: they notice by themselves and name it.
# srun does not inherit the CPUs of a task.
srun --kill-on-bad-exit=0 --wait="$LIMIT" --export=ALL \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  --output="$logs/process-%t-%N.log" \
  "${PYTHON:-python}" -m mlir_jax.train --distributed "$@" 2>"$logs/srun.log"
status=$?
cat "$logs/srun.log" >&2
((status)) || exit 0

# Status is the highest of the tasks'; srun names the others.
if ((status == 2)) || grep -q 'Exited with exit code 2$' "$logs/srun.log"; then
  say "Refused (status 2): mend what the logs name; it is not queued again."
  exit 2
fi
if grep -q 'Exited with exit code 130$' "$logs/srun.log"; then
  say "Interrupted (status 130): not queued again; the same command goes on."
  exit 130
fi
if ((status == 1)); then
  say "A fault (status 1), not queued again; see $logs."
  exit 1
fi

# The starts without progress before this one stand beside the logs.
counter=$workdir/logs/slurm-$SLURM_JOB_ID-stalled
stalled=''
[[ -f $counter && ! -L $counter ]] && read -r -N 20 stalled <"$counter"
stalled=${stalled%$'\n'}
is_whole "$stalled" || stalled=0
now=$(last_step)
if ((now > before)); then stalled=0; else ((stalled++)); fi
# Renamed, so that no link is followed.
keep() {
  local aside
  aside=$(mktemp "$workdir/logs/.stalled.XXXXXXXXXX") &&
    echo "$2" >"$aside" && mv -fT -- "$aside" "$1"
}
keep "$counter" "$stalled" || refuse "Cannot write to $workdir/logs."
if ((stalled >= RETRIES)); then
  say "$stalled starts in a row brought no new checkpoint; see $logs."
  exit "$status"
fi
say "Status $status at the checkpoint of step $now: queued again."
scontrol requeue "$SLURM_JOB_ID"
