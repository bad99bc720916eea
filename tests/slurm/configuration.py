"""The cluster's configuration files, as text to be filled in."""

SLURM_CONF = """\
ClusterName=test{port}
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
{listening}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.daemon
SlurmdPidFile={folder}/slurmd.%n.daemon
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
JobRequeue=1
MaxArraySize={array_size}
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
KillWait=30
MinJobAge=10
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=20
TCPTimeout=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={nodes} NodeHostname={host} NodeAddr={address} Port={ports} {size}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=test Default=YES
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high PriorityTier=10
{accounting}
"""
WITHOUT_ACCOUNTING = """\
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
"""
WITH_ACCOUNTING = """\
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={database_port}
{listening}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.daemon
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={tables_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""
