package process

// HelperCommand is the first argument of the agent's own program when it is
// started as a helper; the helper's name and its arguments follow.
const HelperCommand = "helper"

// Helper describes a helper: the agent's own program, started again as the
// sandbox's account, with the Spawner's environment and in its working
// directory. Parts of the agent that are heavy, or that read what the sandbox's
// programs have written in a way that takes more than [account.Account.Do],
// live in one: what they take in memory ends with them, and what goes wrong in
// them has no more rights than the sandbox's programs. name is what the program
// dispatches on. The caller sets descriptors and starts it; a helper that lives
// on is to end when its standard input does, which is also the agent's end.
//
// The file is the one that this process runs, whatever has become of its path:
// the link is followed between fork and exec, when it leads to the program of
// the child, which is still the agent's, and which nothing but permission to
// execute it is needed for. That permission is the sandbox's user's in all that
// backends start; a test's program is its author's to give.
func (s *Spawner) Helper(name string, args ...string) *Spec {
	return &Spec{
		Args: append([]string{"daytona-agent", HelperCommand, name}, args...),
		Path: "/proc/self/exe",
	}
}
