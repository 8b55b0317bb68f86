package network

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// getsockopt is the call with a buffer that is read and written, which x/sys has no form for.
func getsockopt(fd, level, name int, buf []byte) error {
	size := uint32(len(buf))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return e
	}
	return nil
}
