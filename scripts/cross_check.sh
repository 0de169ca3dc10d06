#!/usr/bin/env bash
# Builds libpyflash, warnings being errors, with every compiler that can be had here:
#   gcc and clang for this machine, mingw-w64 gcc for Windows, aarch64 gcc for arm64 Linux, and with --zig also
#   zig's clang, which brings the headers of macOS and Windows and links for both. --zig installs the PyPI package
#   `ziglang` (about 100 MB) into a temporary environment.
# Only shows that everything compiles and links; nothing is run. A compiler that is not installed is skipped, visibly.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # some compilers leave a file where they are asked for their name
failed=0

# build NAME COMPILER [CMake argument...]
build() {
    local name=$1 compiler=$2
    shift 2
    if ! command -v "$compiler" >/dev/null; then
        echo "skipped  $name: no $compiler"
        return
    fi
    if cmake -S "$root" -B "$work/$name" -G Ninja -DPYFLASH_WERROR=ON -DCMAKE_C_COMPILER="$compiler" "$@" \
            >"$work/$name.log" 2>&1 && cmake --build "$work/$name" -j "${JOBS:-2}" >>"$work/$name.log" 2>&1; then
        echo "passed   $name: $("$compiler" --version | head -n 1)"
    else
        echo "FAILED   $name:"
        grep -E "error|warning|undefined" -A 3 "$work/$name.log" | head -n 40 || tail -n 20 "$work/$name.log"
        failed=1
    fi
}

windows=(-DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=AMD64)
build linux-gcc gcc
build linux-clang clang
build windows-x64-mingw x86_64-w64-mingw32-gcc "${windows[@]}"
build linux-arm64-gcc aarch64-linux-gnu-gcc -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64

if [ "${1-}" = --zig ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install -q ziglang
    zig_compiler() { # zig_compiler TARGET: a compiler command for it, with zig's spelling of our one -march
        cat >"$work/zig-$1" <<END
#!/usr/bin/env bash
exec "$work/venv/bin/python" -m ziglang cc -target $1 "\${@/#-march=armv8.2-a+dotprod/-mcpu=generic+v8_2a+dotprod}"
END
        chmod +x "$work/zig-$1"
        echo "$work/zig-$1"
    }
    # CMake asks for a tool that only macOS has; it is used when installing, which is not done here.
    darwin=(-DCMAKE_SYSTEM_NAME=Darwin -DCMAKE_INSTALL_NAME_TOOL=/bin/true -DCMAKE_OSX_DEPLOYMENT_TARGET=)
    build macos-arm64-zig "$(zig_compiler aarch64-macos)" "${darwin[@]}" -DCMAKE_SYSTEM_PROCESSOR=arm64
    build macos-x64-zig "$(zig_compiler x86_64-macos)" "${darwin[@]}" -DCMAKE_SYSTEM_PROCESSOR=x86_64
    build windows-x64-zig "$(zig_compiler x86_64-windows-gnu)" "${windows[@]}"
else
    echo "skipped  macOS: run with --zig"
fi
exit $failed
