# A lab host logs in at the storage host TARGET (its number) with the kernel's initiator; its disks are /dev/lun0 and /dev/lun1 from then on.
set -e
modprobe -a sd_mod iscsi_tcp
P=/run/open-iscsi
mkdir -p $P /etc/iscsi /run/lock/iscsi
# Out of the folder that is read anew each time.
cp /shared/open-iscsi/* $P
export LD_LIBRARY_PATH=$P
echo "InitiatorName=iqn.2026-01.test.lockstep:$(hostname)" >/etc/iscsi/initiatorname.iscsi
# A path that is lost shows within 3 s, and 2 s later requests fail instead of waiting for it; the session is set up again when the path is back.
cat >/etc/iscsi/iscsid.conf <<C
node.startup = manual
node.conn[0].timeo.login_timeout = 5
node.conn[0].timeo.noop_out_interval = 1
node.conn[0].timeo.noop_out_timeout = 2
node.session.timeo.replacement_timeout = 2
C
# What it says last is what it was at, should its time run out.
echo "starting iscsid"
$P/iscsid
A=10.78.0.$TARGET
echo "waiting for $A"
until (: </dev/tcp/$A/3260) 2>/dev/null; do sleep 0.05; done
echo "logging in"
N="$P/iscsiadm -m node -T iqn.2026-01.test.lockstep:storage -p $A:3260"
$N -o new
$N --login
for n in 0 1; do
  echo "waiting for LUN $n"
  # No udev here: the kernel's own names, which follow no order, are found by the session and the LUN.
  until disk=$(ls -d /sys/class/iscsi_session/session*/device/target*/*:$n/block/* 2>/dev/null); do sleep 0.02; done
  ln -sf ${disk##*/} /dev/lun$n
done
