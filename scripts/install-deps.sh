#!/usr/bin/env bash
# Installs the system packages that building, testing and the demo need (Debian 12, apt). Says what it
# does; when nothing is missing it does nothing and takes a few milliseconds. Runs as root or with sudo.
set -euo pipefail

packages=(
  # build
  build-essential cmake ninja-build pkg-config ccache git
  # libraries of skvd, libskv and skvctl
  libuv1-dev libboost-dev liburing-dev libspdlog-dev libfmt-dev libtomlplusplus-dev libcli11-dev
  libxxhash-dev libssl-dev libhwy-dev libsystemd-dev nlohmann-json3-dev
  # tests, checks
  libgtest-dev libgmock-dev librapidcheck-dev
  clang clang-format clang-tidy libclang-rt-14-dev systemd
  # what benchmarks are held against
  fio redis-server
  # Python package, engine (libicu-dev: PyICU is compiled when the virtual environment is made)
  python3 python3-dev python3-venv python3-numpy libicu-dev
)

# Package states as dpkg has them; "ii" alone means installed and configured.
installed=" $(dpkg-query -W -f='${db:Status-Abbrev}${Package}\n' 2>/dev/null | sed -n 's/^ii *//p' | tr '\n' ' ') "
missing=()
for package in "${packages[@]}"; do
  [[ "$installed" == *" $package "* ]] || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  echo "system packages: all ${#packages[@]} are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "system packages: run me as root, or install sudo; missing: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "system packages: installing ${#missing[@]} of ${#packages[@]}: ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq)
"${apt[@]}" update
"${apt[@]}" --no-install-recommends --print-uris install "${missing[@]}" |
  awk '{ bytes += $3; count++ } END { printf "system packages: download of %d MB in %d packages\n", bytes / 1e6, count }'
"${apt[@]}" --no-install-recommends -y install "${missing[@]}" >/dev/null
echo "system packages: done"
