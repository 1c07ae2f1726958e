#!/bin/sh
# The first process of a guest: mounts what a system has mounted, loads modules, runs everything and ends.
export PATH=/bin HOME=/root FAIRLEAD_BIN_DIR=/fairlead FAIRLEAD_PATIENCE=20
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /var /dev/pts
ln -s /run /var/run
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
while read -r module; do
  insmod "/modules/$module" || echo "can't load $module"
done < /modules/order
echo "## boot $(uname -r)"
echo "## check"
/fairlead/fairlead-proxy check -o json 2> /tmp/check
echo "## check done $?"
cat /tmp/check
echo "## programs"
/fairlead/programs --include-ignored --test-threads=1 2>&1
echo "## programs done $?"
if grep -q fairlead_demo /proc/cmdline; then
  echo "## demo"
  /fairlead/fairlead-harness demo --manifests /manifests/examples 2>&1
  echo "## demo done $?"
fi
echo "## end"
poweroff -f
