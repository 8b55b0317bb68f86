package local

import (
	"encoding/binary"
	"fmt"
	"sync"

	policy "github.com/daytona-go/daytona/internal/seccomp"
	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// seccompProgram compiles the filter once.
//
// One thing it allows that the profile does not is clone3, whose flags a filter
// cannot see and which the agent needs to start programs in cgroups. What
// Docker guards against by refusing it, new user namespaces, is impossible
// for another reason: boot sets user.max_user_namespaces to 0.
var seccompProgram = sync.OnceValues(func() ([]byte, error) {
	base, err := policy.Profile(capabilityNames())
	if err != nil {
		return nil, err
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	allow := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
	plain := map[string]bool{}
	add := func(name string) {
		if _, known := info.SyscallNames[name]; known && !plain[name] {
			plain[name] = true
			allow.Names = append(allow.Names, name)
		}
	}
	add("clone3")
	for _, rule := range base.Syscalls {
		if rule.Action == specs.ActAllow && len(rule.Args) == 0 {
			for _, name := range rule.Names {
				add(name)
			}
		}
	}
	conditional := func(name string, conds ...seccomp.Condition) {
		if _, known := info.SyscallNames[name]; known && !plain[name] {
			allow.NamesWithCondtions = append(allow.NamesWithCondtions, seccomp.NameWithConditions{Name: name, Conditions: conds})
		}
	}
	for _, rule := range base.Syscalls {
		if rule.Action != specs.ActAllow || len(rule.Args) == 0 {
			continue
		}
		var conds []seccomp.Condition
		for _, a := range rule.Args {
			c := seccomp.Condition{Argument: uint32(a.Index), Value: a.Value}
			switch a.Op {
			case specs.OpEqualTo:
				c.Operation = seccomp.Equal
			case specs.OpNotEqual:
				c.Operation = seccomp.NotEqual
			case specs.OpLessThan:
				c.Operation = seccomp.LessThan
			case specs.OpMaskedEqual:
				if a.ValueTwo != 0 {
					return nil, fmt.Errorf("seccomp: rule for %v: a masked comparison with %#x has no translation", rule.Names, a.ValueTwo)
				}
				c.Operation = seccomp.BitsNotSet
			default:
				return nil, fmt.Errorf("seccomp: rule for %v: operator %s has no translation", rule.Names, a.Op)
			}
			conds = append(conds, c)
		}
		for _, name := range rule.Names {
			conditional(name, conds...)
		}
	}
	program := seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{allow}}
	insns, err := program.Assemble()
	if err != nil {
		return nil, fmt.Errorf("seccomp: assemble: %w", err)
	}
	raw, err := bpf.Assemble(insns)
	if err != nil {
		return nil, fmt.Errorf("seccomp: assemble: %w", err)
	}
	prog := make([]byte, 0, len(raw)*8)
	for _, i := range raw {
		prog = binary.NativeEndian.AppendUint16(prog, i.Op)
		prog = append(prog, i.Jt, i.Jf)
		prog = binary.NativeEndian.AppendUint32(prog, i.K)
	}
	return prog, nil
})

// keptCapabilities are those that root of a sandbox has, over the sandbox's
// own user namespace only. The sandbox's user has none.
var keptCapabilities = []struct {
	name string
	bit  uint
}{
	{"CAP_CHOWN", unix.CAP_CHOWN},
	{"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE},
	{"CAP_FOWNER", unix.CAP_FOWNER},
	{"CAP_FSETID", unix.CAP_FSETID},
	{"CAP_KILL", unix.CAP_KILL},
	{"CAP_SETGID", unix.CAP_SETGID},
	{"CAP_SETUID", unix.CAP_SETUID},
	{"CAP_NET_BIND_SERVICE", unix.CAP_NET_BIND_SERVICE},
	{"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT},
}

func capabilityNames() []string {
	var names []string
	for _, c := range keptCapabilities {
		names = append(names, c.name)
	}
	return names
}

func capabilityMask() uint64 {
	var mask uint64
	for _, c := range keptCapabilities {
		mask |= 1 << c.bit
	}
	return mask
}
