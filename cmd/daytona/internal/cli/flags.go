package cli

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/daytona-go/daytona"
)

// specFlags are the flags that describe a sandbox to create.
type specFlags struct {
	spec    daytona.Spec
	env     []string
	envFile []string
	labels  []string
	build   buildFlags
}

// flagOfField names the flag behind a field of daytona.Spec, so that the
// library's objections make sense on a command line.
var flagOfField = []struct{ field, flag string }{
	{"Name", "--name"},
	{"Image", "--image"},
	{"Build", "--dockerfile"},
	{"Dockerfile", "--dockerfile"},
	{"Contexts", "--context"},
	{"Snapshot", "--snapshot"},
	{"User", "--user"},
	{"WorkDir", "--workdir"},
	{"Env", "--env"},
	{"Labels", "--label"},
	{"Language", "--language"},
	{"Resources.CPU", "--cpus"},
	{"Resources.Memory", "--memory"},
	{"Resources.Disk", "--disk"},
	{"Resources.Processes", "--pids"},
	{"Network", "--net"},
	{"Volumes", "--volume"},
	{"TTL", "--ttl"},
	{"AutoStop", "--auto-stop"},
	{"AutoPause", "--auto-pause"},
	{"AutoArchive", "--auto-archive"},
	{"AutoDelete", "--auto-delete"},
}

// flagNames rewrites the field of an error to the flag that set it.
func flagNames(err error) error {
	e, ok := err.(*daytona.Error)
	if !ok || e.Field == "" {
		return err
	}
	for _, f := range flagOfField {
		if rest, ok := strings.CutPrefix(e.Field, f.field); ok && (rest == "" || rest[0] == '[' || rest[0] == '.') {
			renamed := *e
			renamed.Field = f.flag
			return &renamed
		}
	}
	return err
}

// register adds the flags to cmd.
func (f *specFlags) register(a *app, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.spec.Name, "name", "", "`name` of the sandbox (default: a generated one)")
	flags.StringVar(&f.spec.Image, "image", "", "root filesystem: host, an `image` such as debian:12, oci:/dir:tag, docker-archive:/file, dir:/path or tar:/file (default: the backend's; for local, host)")
	f.build.register(cmd)
	flags.StringVar(&f.spec.Snapshot, "snapshot", "", "start from this `snapshot` instead of an image")
	flags.Float64Var(&f.spec.Resources.CPU, "cpus", 0, "number of CPU `cores`, such as 0.5 (default: all, shared fairly)")
	flags.Var((*sizeValue)(&f.spec.Resources.Memory), "memory", "memory limit, such as 512m, 2g or 1.5 (GiB) (default: the backend's)")
	flags.Var((*sizeValue)(&f.spec.Resources.Disk), "disk", "limit of what may be written to disk, such as 10g (default: none)")
	flags.IntVar(&f.spec.Resources.Processes, "pids", 0, "greatest `number` of processes and threads (default: the backend's)")
	flags.Var((*networkValue)(&f.spec.Network), "net", "what may be reached: default (the public internet), none, or a list such as 203.0.113.0/24,pypi.org")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set a variable: `KEY=VALUE`, or KEY to pass on this shell's")
	flags.StringArrayVar(&f.envFile, "env-file", nil, "set the variables in a `file` of KEY=VALUE lines")
	flags.VarP((*volumeValue)(&f.spec.Volumes), "volume", "v", "mount a volume: `NAME:/PATH` or NAME:/PATH:ro")
	flags.StringVarP(&f.spec.WorkDir, "workdir", "w", "", "`directory` to start in, made if missing (default: the image's, or the home directory)")
	flags.StringVarP(&f.spec.User, "user", "u", "", "run as this `user` of the image: a name, UID or UID:GID")
	flags.StringArrayVar(&f.labels, "label", nil, "attach a label: `KEY=VALUE`")
	for _, name := range []string{"name", "image", "cpus", "memory", "disk", "pids", "env", "workdir", "user", "label"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	must(cmd.RegisterFlagCompletionFunc("snapshot", a.completeSnapshots(-1)))
	must(cmd.RegisterFlagCompletionFunc("net", cobra.FixedCompletions([]string{"default", "none"}, cobra.ShellCompDirectiveNoFileComp)))
}

// resolve completes and checks the Spec.
func (f *specFlags) resolve() (daytona.Spec, error) {
	spec := f.spec
	env, err := readEnvironment(f.env, f.envFile)
	if err != nil {
		return spec, err
	}
	spec.Env = env
	if spec.Labels, err = keyValues("--label", f.labels); err != nil {
		return spec, err
	}
	if spec.Build, err = f.build.image(); err != nil {
		return spec, err
	}
	return spec, flagNames(spec.Validate())
}

// readEnvironment reads -e and --env-file; -e wins over files, the later over
// the earlier.
func readEnvironment(vars, files []string) (map[string]string, error) {
	env := map[string]string{}
	add := func(from, v string) error {
		key, value, given := strings.Cut(v, "=")
		if !given {
			if value, given = os.LookupEnv(key); !given {
				return fmt.Errorf("%s: variable %q has no value here; write %s=VALUE", from, key, key)
			}
		}
		env[key] = value
		return nil
	}
	for _, name := range files {
		if err := readEnvFile(name, add); err != nil {
			return nil, err
		}
	}
	for _, v := range vars {
		if err := add("--env", v); err != nil {
			return nil, err
		}
	}
	if err := daytona.ValidateEnv("environment", "--env", env); err != nil {
		return nil, err
	}
	return env, nil
}

func readEnvFile(name string, add func(from, v string) error) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("--env-file: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := add(fmt.Sprintf("%s:%d", name, n), line); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("--env-file %s: %w", name, err)
	}
	return nil
}

// keyValues parses the KEY=VALUE values of a flag.
func keyValues(flag string, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%s %q: must be KEY=VALUE", flag, p)
		}
		m[k] = v
	}
	return m, nil
}

// sizeValue is a flag for an amount of memory or disk, kept in GiB.
type sizeValue float64

var sizeRule = regexp.MustCompile(`^([0-9]+\.?[0-9]*|\.[0-9]+)\s*(?:([kmgt])(?:i?b)?|(b))?$`)

func parseSize(s string) (gib float64, err error) {
	m := sizeRule.FindStringSubmatch(strings.ToLower(strings.TrimSpace(s)))
	if m == nil {
		return 0, fmt.Errorf("must be a number with a unit b, k, m, g or t, such as 512m; without a unit it counts GiB")
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil || math.IsInf(n, 0) {
		return 0, fmt.Errorf("is too large a number")
	}
	// All units are powers of 1024, as everywhere with memory.
	switch {
	case m[3] == "b":
		n /= 1 << 30
	case m[2] == "k":
		n /= 1 << 20
	case m[2] == "m":
		n /= 1 << 10
	case m[2] == "t":
		n *= 1 << 10
	}
	return n, nil
}

func (v *sizeValue) Set(s string) error {
	n, err := parseSize(s)
	if err == nil {
		*v = sizeValue(n)
	}
	return err
}

func (v *sizeValue) Type() string { return "size" }

func (v *sizeValue) String() string {
	if *v == 0 {
		return ""
	}
	return byteSize(int64(float64(*v) * daytona.GiB))
}

// networkValue is the flag --net.
type networkValue daytona.NetworkPolicy

func (v *networkValue) Set(s string) error {
	var p daytona.NetworkPolicy
	switch s {
	case "default":
	case "none":
		p.Block = true
	default:
		for _, item := range strings.Split(s, ",") {
			item = strings.TrimSpace(item)
			if item == "" {
				return fmt.Errorf(`must be "default", "none", or a list such as 203.0.113.0/24,pypi.org`)
			}
			if addr, err := netip.ParseAddr(item); err == nil {
				p.Allow = append(p.Allow, netip.PrefixFrom(addr, addr.BitLen()))
			} else if strings.ContainsAny(item, "/:") {
				prefix, err := netip.ParsePrefix(item)
				if err != nil {
					return fmt.Errorf("%q is not a CIDR such as 203.0.113.0/24", item)
				}
				p.Allow = append(p.Allow, prefix)
			} else {
				p.AllowDomains = append(p.AllowDomains, item)
			}
		}
	}
	*v = networkValue(p)
	return nil
}

func (v *networkValue) Type() string { return "policy" }

// String is empty for the default, which the flag's description names.
func (v *networkValue) String() string {
	if s := describeNetwork(daytona.NetworkPolicy(*v)); s != "default" {
		return s
	}
	return ""
}

// describeNetwork writes a policy as --net takes it.
func describeNetwork(p daytona.NetworkPolicy) string {
	if p.Block || (p.Allow != nil && len(p.Allow) == 0) || (p.AllowDomains != nil && len(p.AllowDomains) == 0) {
		return "none"
	}
	var items []string
	for _, a := range p.Allow {
		items = append(items, a.String())
	}
	items = append(items, p.AllowDomains...)
	if len(items) == 0 {
		return "default"
	}
	return strings.Join(items, ",")
}

// volumeValue is the repeatable flag --volume.
type volumeValue []daytona.VolumeMount

func (v *volumeValue) Set(s string) error {
	parts := strings.Split(s, ":")
	if name := parts[0]; strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "~") {
		return fmt.Errorf(`%q is a path on this machine, which a sandbox never gets; copy files in with --upload, or mount a volume made by "daytona volume create"`, name)
	}
	m := daytona.VolumeMount{Volume: parts[0]}
	switch {
	case len(parts) == 3 && (parts[2] == "ro" || parts[2] == "rw"):
		m.ReadOnly = parts[2] == "ro"
	case len(parts) != 2:
		return fmt.Errorf("must be NAME:/PATH or NAME:/PATH:ro")
	}
	m.MountPath = parts[1]
	*v = append(*v, m)
	return nil
}

func (v *volumeValue) Type() string   { return "mount" }
func (v *volumeValue) String() string { return strings.Join(describeVolumes(*v), ",") }

func describeVolumes(mounts []daytona.VolumeMount) []string {
	var s []string
	for _, m := range mounts {
		d := m.Volume
		if m.Subpath != "" {
			d += "/" + m.Subpath
		}
		d += ":" + m.MountPath
		if m.ReadOnly {
			d += ":ro"
		}
		s = append(s, d)
	}
	return s
}

// durationFlag adds a flag for a time that is at least a second.
func durationFlag(flags *pflag.FlagSet, p *time.Duration, name, usage string) {
	flags.DurationVar(p, name, 0, usage+", such as 30s or 1h30m")
}

var (
	_ pflag.Value = (*sizeValue)(nil)
	_ pflag.Value = (*networkValue)(nil)
	_ pflag.Value = (*volumeValue)(nil)
	_ io.Reader   = (*countingReader)(nil)
)
