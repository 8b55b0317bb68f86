// Package environment is the environment that the agent gives to the programs
// it starts. It is apart from the agent's own, can change while programs run,
// and knows nothing of the HTTP API.
package environment

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Env is a set of variables. It may be used by several goroutines at once.
type Env struct {
	mu   sync.RWMutex
	vars map[string]string
}

// New returns an environment with the given variables, which must be valid.
func New(vars map[string]string) (*Env, error) {
	e := &Env{vars: map[string]string{}}
	return e, e.Update(vars, nil, "")
}

// Environ returns the variables as "NAME=value", sorted by name.
func (e *Env) Environ() []string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := make([]string, 0, len(e.vars))
	for _, name := range slices.Sorted(maps.Keys(e.vars)) {
		out = append(out, name+"="+e.vars[name])
	}
	return out
}

// Get returns the value of a variable, "" if it is not set.
func (e *Env) Get(name string) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.vars[name]
}

// Update changes the environment at once for all programs started later: first
// it removes the variables named by unset, and those whose value starts with
// unsetValuePrefix (if not empty) and that set does not name; then it adds
// set. An invalid name or value is an error, and nothing changes.
func (e *Env) Update(set map[string]string, unset []string, unsetValuePrefix string) error {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if err := Check(name, set[name]); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, name := range unset {
		delete(e.vars, name)
	}
	if unsetValuePrefix != "" {
		maps.DeleteFunc(e.vars, func(name, value string) bool {
			_, kept := set[name]
			return !kept && strings.HasPrefix(value, unsetValuePrefix)
		})
	}
	maps.Copy(e.vars, set)
	return nil
}

// Check tells whether a variable can be given to a program. Names match
// [A-Za-z_][A-Za-z0-9_]*, values have no NUL.
func Check(name, value string) error {
	for i, c := range []byte(name) {
		letter := c == '_' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return fmt.Errorf("environment variable %q: a name is letters, digits and underscores, and starts with no digit", name)
		}
	}
	if name == "" {
		return fmt.Errorf("environment variable with value %q: the name is empty", value)
	}
	if strings.IndexByte(value, 0) >= 0 {
		return fmt.Errorf("environment variable %s: the value has a NUL byte", name)
	}
	return nil
}
