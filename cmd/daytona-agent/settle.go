package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleAfter is when the agent has started, and has answered who waited for that.
const settleAfter = time.Second

// settle unmaps what starting has touched of the program's file. Packages are
// made ready all over it, which leaves most of it mapped for as long as the
// agent lives, though little is used again: that comes back when it is, from the
// page cache, and the rest is no longer counted as the agent's.
func settle() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	var begin, end uintptr
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if !strings.HasSuffix(fields[0], ":") {
			// ADDRESSES PERMISSIONS OFFSET DEVICE INODE [NAME]
			begin, end = 0, 0
			if len(fields) >= 6 && fields[4] != "0" && strings.HasPrefix(fields[1], "r-") {
				if _, err := fmt.Sscanf(fields[0], "%x-%x", &begin, &end); err != nil {
					return err
				}
			}
			continue
		}
		// Pages that are no longer the file's would be lost. This line comes after
		// those on what is resident.
		if fields[0] != "Anonymous:" || fields[1] != "0" || begin == end {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); errno != 0 {
			err = errors.Join(err, errno)
		}
		begin, end = 0, 0
	}
	return errors.Join(err, lines.Err())
}
