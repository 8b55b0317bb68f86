package process

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// waitInfo is siginfo_t as waitid(2) fills it: x/sys does not name the fields.
// See include/uapi/asm-generic/siginfo.h; the union is aligned as a pointer.
type waitInfo struct {
	Signo, Errno, Code int32
	_                  [unsafe.Sizeof(uintptr(0)) - 4]byte
	Pid                int32
	UID                uint32
	Status             int32
	_                  [100]byte
}

func waitid(idType, id int, info *waitInfo, options int) error {
	*info = waitInfo{}
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, uintptr(idType), uintptr(id), uintptr(unsafe.Pointer(info)), uintptr(options), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
