#!/bin/sh
# Installs both QEMUs of the real-peer ring on Debian bookworm: 10.0 from the backports suite, and 7.2 of the
# main suite unpacked beside it in /opt/qemu-7.2. Run as root; running it again changes nothing.
set -eu

unpacked=/opt/qemu-7.2

# Names no host: adds the suite to the Debian source that is configured already, in either format of apt.
enable_backports() {
    if grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d; then
        return
    fi
    deb822=$(grep -lsE '^Suites:(.* )?bookworm( |$)' /etc/apt/sources.list.d/*.sources | head -n 1) || true
    if [ -n "$deb822" ]; then
        # Only the first stanza that has bookworm itself: bookworm-security is another archive.
        sed -i -E '0,/^Suites:(.* )?bookworm( |$)/s/^(Suites:(.* )?bookworm)( |$)/\1 bookworm-backports\3/' "$deb822"
        return
    fi
    one_line=$(grep -lsE '^deb .* bookworm ' /etc/apt/sources.list /etc/apt/sources.list.d/*.list | head -n 1) || true
    if [ -z "$one_line" ]; then
        echo "no source for Debian bookworm is configured" >&2
        exit 1
    fi
    line=$(grep -m 1 -E '^deb .* bookworm ' "$one_line")
    echo "$line" | sed 's/ bookworm / bookworm-backports /' >> "$one_line"
}

main_suite_version() {
    apt-cache madison "$1" | awk '{ print $3 }' | grep '^1:7\.2' | head -n 1
}

unpack_7_2() {
    if "$unpacked/usr/bin/qemu-system-x86_64" --version > /dev/null 2>&1; then
        return
    fi
    folder=$(mktemp -d)
    chmod 777 "$folder" # apt fetches as a user of its own.
    (
        cd "$folder"
        for package in qemu-system-x86 qemu-system-common qemu-system-data; do
            apt-get download -q "$package=$(main_suite_version "$package")"
        done
        mkdir -p "$unpacked"
        for archive in ./*.deb; do
            dpkg -x "$archive" "$unpacked"
        done
    )
    rm -r "$folder"
}

enable_backports
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -t bookworm-backports \
    qemu-system-x86 seabios
unpack_7_2
qemu-system-x86_64 --version
"$unpacked/usr/bin/qemu-system-x86_64" --version
