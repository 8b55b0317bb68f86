package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapProgram gives back the pages of the program's file. Its start goes through
// nearly all of them, since every package of every helper is set up, and the
// kernel gives a process fifteen more with each page that it asks for. What is
// needed again comes from the page cache, a microsecond for each sixteen. What
// the program writes to is left alone.
func unmapProgram() error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	type mapping struct {
		begin, end uintptr
		file       string
	}
	var mappings []mapping
	program, here := "", reflect.ValueOf(unmapProgram).Pointer()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Addresses, rights, offset, device and inode: proc_pid_maps(5).
		var m mapping
		var rights, offset, device, inode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s %s %s %s", &m.begin, &m.end, &rights, &offset, &device, &inode); err != nil {
			return fmt.Errorf("/proc/self/maps: %q: %w", lines.Text(), err)
		}
		if m.file = device + " " + inode; m.begin <= here && here < m.end {
			program = m.file
		}
		if !strings.Contains(rights, "w") {
			mappings = append(mappings, m)
		}
	}
	for _, m := range mappings {
		if m.file != program {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}
