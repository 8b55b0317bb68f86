// Package seccomp says which system calls sandboxes may make: an allow-list for
// engines to enforce, each in its own way.
//
// It knows no engine and loads nothing.
package seccomp

import (
	"fmt"
	"slices"

	profile "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// denied are refused whatever the base profile says: what gives
// access to kernel machinery that sandboxes have no business with and that
// escapes have been built on.
var denied = []string{
	"add_key", "bpf", "fanotify_init", "io_uring_enter", "io_uring_register", "io_uring_setup",
	"kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "name_to_handle_at", "open_by_handle_at",
	"perf_event_open", "process_vm_readv", "process_vm_writev", "request_key", "userfaultfd", "vmsplice",
}

// domains are the address families that may be used. Not among them:
// AF_ALG (CVE-2026-31431), AF_VSOCK, AF_PACKET and the many that nobody
// needs.
var domains = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// Profile is Docker's default profile for a process with these capabilities,
// less what is denied here and all sockets but those of a few address families.
func Profile(capabilities []string) (*specs.LinuxSeccomp, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}}
	p, err := profile.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("seccomp: default profile: %w", err)
	}
	rules := p.Syscalls[:0]
	for _, r := range p.Syscalls {
		if r.Action == specs.ActAllow {
			r.Names = slices.DeleteFunc(slices.Clone(r.Names), func(n string) bool { return n == "socket" || slices.Contains(denied, n) })
		}
		if len(r.Names) > 0 {
			rules = append(rules, r)
		}
	}
	for _, d := range domains {
		rules = append(rules, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: d, Op: specs.OpEqualTo}}})
	}
	p.Syscalls = rules
	return p, nil
}
