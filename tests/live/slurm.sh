#!/usr/bin/env bash
# A recipe on a real Slurm of one node, with its accounting, from Debian's packages (slurm-wlm, slurmdbd, munge, mariadb-server).
# Checks an array after a stage, a job that is requeued in the middle of training, the same bytes as on one machine, and that
# nothing is submitted twice. Needs root, and no Slurm or database that runs already. BINARY names the program; the folder is the first argument.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bam=$(realpath "${BINARY:-$here/../../target/release/bam-convert}")
work=$(realpath -m "${1:-$here/../../target/live/slurm}")
say() { printf '\n== %s\n' "$*"; }
for tool in sbatch sacct slurmctld slurmd slurmdbd munged mariadbd hostname; do
  command -v $tool > /dev/null || { echo "lacks $tool: apt-get install slurm-wlm slurmdbd munge mariadb-server hostname"; exit 2; }
done
rm -rf "$work" && mkdir -p "$work"/{state,spool,db,recipe} && cd "$work"

host=$(hostname)
cat > slurm.conf <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MinJobAge=300
KillWait=60
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
JobAcctGatherType=jobacct_gather/linux
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000
PartitionName=main Nodes=$host Default=YES MaxTime=60 State=UP
END
cat > slurmdbd.conf <<END
AuthType=auth/munge
DbdHost=$host
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=33306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
LogFile=$work/slurmdbd.log
PidFile=$work/slurmdbd.pid
END
chmod 600 slurmdbd.conf
export SLURM_CONF=$work/slurm.conf
started=()
finish() {
  scancel --me 2> /dev/null || true
  for pid in "${started[@]}"; do kill "$pid" 2> /dev/null || true; done
  wait 2> /dev/null || true
}
trap finish EXIT
mkdir -p /run/munge && chown munge: /run/munge
pgrep -x munged > /dev/null || { runuser -u munge -- /usr/sbin/munged --foreground 2> munged.err & started+=($!); }
chown -R mysql: db && chmod 755 "$work"
mariadb-install-db --user=mysql --datadir="$work/db" > mariadb-install.log 2>&1
mariadbd --no-defaults --user=mysql --datadir="$work/db" --socket="$work/db/s" --port=33306 --bind-address=127.0.0.1 2> mariadb.log & started+=($!)
until [ -S db/s ] && mariadb --no-defaults -S db/s -e 'create database if not exists slurm; create user if not exists slurm@"127.0.0.1" identified by "slurm"; grant all on slurm.* to slurm@"127.0.0.1"' 2> /dev/null; do sleep 0.5; done
# It expects its settings next to Slurm's.
slurmdbd -D 2> slurmdbd.err & started+=($!)
until sacctmgr -n list cluster > /dev/null 2>&1; do sleep 0.5; done
sacctmgr -i add cluster one > /dev/null
slurmctld -D 2> slurmctld.err & started+=($!)
slurmd -D 2> slurmd.err & started+=($!)
until [ "$(sinfo -h -o %t 2> /dev/null)" = idle ]; do sleep 0.5; done
sinfo --version

cp -r "$here/../../recipes/quickstart/seed" "$here/../../recipes/quickstart/texts" recipe/
cat > recipe/recipe.yaml <<'END'
variables: {seed: "${recipe}/seed", steps: 30}
slurm: {cpus: 1, time: 20, mem: 300}
stages:
  - name: tokens-${domain}
    for_each: {domain: [code, law]}
    tokenize: {tokenizer: "${seed}", paths: ["${recipe}/texts/${domain}.jsonl"], out: "tokens/${domain}"}
  - name: branches
    branch: {seed: "${seed}", into: "code,law", out: branches}
  - name: train-${domain}
    for_each: {domain: [code, law]}
    train: {checkpoint: "branches/${domain}", data: {"${domain}": "tokens/${domain}"}, steps: "${steps}", batch: 2, seq: 64, threads: 1,
            save-every: 5, out: "experts/${domain}"}
  - name: bam
    slurm: {time: 10}
    upcycle: {method: bam, seed: "${seed}", expert: {code: experts/code, law: experts/law}, out: bam}
  - name: validate
    validate: {path: bam, against: ["${seed}", experts/code, experts/law], json: true}
    stdout: validate.json
END
recipe=recipe/recipe.yaml
say 'the same on one machine'
"$bam" run $recipe --work local > local.txt
state() { "$bam" run $recipe --work cluster --status --json | python3 -c "import json, sys; print(*[s['state'] for s in json.load(sys.stdin) if s['stage'] == '$1'])"; }

say 'submitted'
"$bam" run $recipe --work cluster --dry-run --executor slurm > submission.sh
sh -n submission.sh
"$bam" run $recipe --work cluster --executor slurm
[ "$(state bam)" = queued ] || [ "$(state bam)" = running ]
say 'nothing is submitted twice'
"$bam" run $recipe --work cluster --executor slurm --json > again.json
python3 -c "import json; assert all(stage['already'] for stage in json.load(open('again.json')))"
until [ -d cluster/experts/code.run/checkpoints ] && ls cluster/experts/code.run/checkpoints | grep -q step-; do sleep 0.2; done
say 'a job put back into the queue while it trains'
job=$(python3 -c "import json; print(json.load(open('cluster/.bam-run/jobs.json'))['train-code'])")
scontrol requeue "$job"
# It would wait for two minutes.
until scontrol update JobId="$job" StartTime=now 2> /dev/null; do sleep 0.5; done
"$bam" run $recipe --work cluster --status
while squeue -h | grep -q .; do sleep 1; done
"$bam" run $recipe --work cluster --status | tee status.txt
! grep -E 'failed|stopped|stale|never' status.txt
grep -q -- --resume cluster/.bam-run/logs/train-code.log
sleep 2
say 'the accounting'
sacct --duplicates -X --format=JobID,JobName%20,State,ExitCode,Start,Elapsed,AllocCPUS | tee sacct.txt
say 'the same bytes'
for folder in tokens branches experts/code experts/law bam; do diff -r "local/$folder" "cluster/$folder"; done
say 'made again from its manifest, as jobs'
# A manifest alone leads to nothing outside the work folder.
sources=(--source code=recipe/texts/code.jsonl --source law=recipe/texts/law.jsonl --source seed=recipe/seed)
"$bam" run --from-manifest cluster/bam --work again "${sources[@]}" --executor slurm
while squeue -h | grep -q .; do sleep 1; done
"$bam" run --from-manifest cluster/bam --work again "${sources[@]}" | tee again.txt
grep -q 'files have the same bytes' again.txt
say 'nothing changed, nothing submitted; one line changed, what follows from it'
"$bam" run $recipe --work cluster --executor slurm --json | tee nothing.json
[ "$(tr -d ' \n' < nothing.json)" = '[]' ]
"$bam" run $recipe --work cluster --executor slurm --set steps=31 --json > changed.json
python3 -c "
import json
stages = [stage['stage'] for stage in json.load(open('changed.json'))]
assert stages == ['train-code', 'train-law', 'bam', 'validate'], stages"
say 'a job that fails takes those behind it along'
scancel "$(python3 -c "import json; print(json.load(open('cluster/.bam-run/jobs.json'))['train-code'].split('_')[0])")"
while squeue -h | grep -q .; do sleep 1; done
"$bam" run $recipe --work cluster --set steps=31 --status --json > cancelled.json
python3 -c "
import json
states = {stage['stage']: (stage['state'], stage['job']['state']) for stage in json.load(open('cancelled.json')) if 'job' in stage}
print(states)
assert all(states[stage][0] != 'done' and states[stage][1] == 'CANCELLED' for stage in ['train-code', 'train-law', 'bam', 'validate'])"
echo 'Slurm: all as it should be'
