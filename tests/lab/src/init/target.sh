# A lab host becomes the storage of the others: the Linux kernel's own iSCSI target (LIO), by its configfs alone.
# INITIATORS: numbers of the hosts that may log in. LUN 0 is this host's copy of the guest's root disk, LUN 1 an empty disk of 64 MiB.
# Registrations and reservations outlive this host: LIO writes them (APTPL) below DB, and only user space can hand them back to it.
set -e
ID=$(hostname | tr -d h)
CONFIG=/sys/kernel/config
T=$CONFIG/target
DB=/data/target
modprobe -a target_core_mod target_core_iblock target_core_file
mountpoint -q $CONFIG || mount -t configfs none $CONFIG
mkdir -p $DB/pr $T
# LIO writes without fsync: without this a reservation would be gone that was made within the last seconds of this host's life.
chattr +S $DB/pr
# Before any fabric is there: afterwards it cannot be changed.
echo $DB >$T/dbroot
modprobe iscsi_target_mod

# What a disk's reservations were when it was written last: one line for each registration, fields separated by commas.
hand_back() {
  [ -s $DB/pr/aptpl_$2 ] || return 0
  while read -r field; do
    case $field in
      PR_REG_START*) one= ;;
      PR_REG_END*) printf %s "$one" >$1/pr/res_aptpl_metadata ;;
      *) one=${one:+$one,}$field ;;
    esac
  done <$DB/pr/aptpl_$2
}

# backstore DIRECTORY CONTROL SERIAL: the serial number, which must be of hexadecimal digits, becomes the disk's WWID.
backstore() {
  mkdir -p $T/core/$1
  printf %s "$2" >$T/core/$1/control
  printf %s "$3" >$T/core/$1/wwn/vpd_unit_serial
  echo 1 >$T/core/$1/enable
  hand_back $T/core/$1 $3
}
backstore iblock_0/guest udev_path=/dev/vda 10c5e90000000000
[ -e /data/lun1 ] || truncate -s 64M /data/lun1
backstore fileio_0/scratch fd_dev_name=/data/lun1,fd_dev_size=67108864 10c5e90000000001

G=$T/iscsi/iqn.2026-01.test.lockstep:storage/tpgt_1
mkdir -p $G/lun/lun_0 $G/lun/lun_1
ln -s $T/core/iblock_0/guest $G/lun/lun_0/disk
ln -s $T/core/fileio_0/scratch $G/lun/lun_1/disk
echo 0 >$G/attrib/authentication
for n in $INITIATORS; do
  A=$G/acls/iqn.2026-01.test.lockstep:h$n
  mkdir -p $A/lun_0 $A/lun_1
  ln -s $G/lun/lun_0 $A/lun_0/disk
  ln -s $G/lun/lun_1 $A/lun_1/disk
done
echo 1 >$G/enable
# Last: who finds the port open finds everything.
mkdir -p $G/np/10.78.0.$ID:3260
