#!/bin/bash
# Checks systemd/skvd.service with the tools of systemd, offline. Exit 77: skipped, with the reason.
#   unit_test.sh verify|security|sysusers SOURCE_DIR SKVD
set -eu
mode=$1 source=$2 skvd=$3
command -v systemd-analyze >/dev/null || { echo "SKIPPED: systemd-analyze is not installed"; exit 77; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
# The unit names paths of an installed daemon; here the one that was built stands for it.
sed -e "s|^ExecStart=/usr/bin/skvd|ExecStart=$skvd|" "$source/systemd/skvd.service" > "$work/skvd.service"
case $mode in
  verify)
    out=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no "$work/skvd.service" 2>&1) ||
      { echo "$out"; exit 1; }
    # Complaints about other units of the machine are not ours; ours name the file.
    if grep -F "skvd.service" <<<"$out"; then exit 1; fi ;;
  security)
    # 15 of 100: the reference daemons of Debian score 12 (redis) and 20 (systemd-oomd).
    systemd-analyze security --offline=yes --threshold=15 --no-pager "$work/skvd.service" | tail -1 ;;
  sysusers)
    command -v systemd-sysusers >/dev/null || { echo "SKIPPED: systemd-sysusers is not installed"; exit 77; }
    mkdir -p "$work/root/etc"
    systemd-sysusers --root="$work/root" "$source/systemd/skvd.sysusers.conf"
    grep -q '^skvd:' "$work/root/etc/passwd"
    grep -q '^skvd-clients:.*skvd' "$work/root/etc/group" ;;
esac
