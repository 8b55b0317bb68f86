package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapProgram gives back the pages of the program's file. Its start goes through
// nearly all of them, since every package of every helper is set up, and the
// kernel gives a process fifteen more with each page that it asks for. What is
// needed again comes from the page cache, a microsecond for each sixteen. Where
// a page is no longer the file's, all around it is left alone.
func unmapProgram() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	// Each mapping is a line as in /proc/self/maps, and lines on it: proc_pid_smaps(5).
	var begin, end uintptr
	wanted := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) < 2:
		case !strings.HasSuffix(fields[0], ":"):
			// Addresses, rights, offset, device, inode and name.
			wanted = len(fields) >= 6 && fields[4] != "0" && !strings.Contains(fields[1], "w")
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &begin, &end); err != nil {
				return fmt.Errorf("/proc/self/smaps: %q: %w", lines.Text(), err)
			}
		case fields[0] == "Anonymous:" && fields[1] == "0" && wanted:
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); errno != 0 {
				return os.NewSyscallError("madvise", errno)
			}
		}
	}
	return lines.Err()
}
