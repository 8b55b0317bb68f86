package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

// completionTime is how long a user who pressed Tab waits.
const completionTime = 2 * time.Second

// forCompletion calls f with a client. Errors are left out: there is nobody to
// tell in the middle of a line.
func (a *app) forCompletion(cmd *cobra.Command, f func(context.Context, *daytona.Client)) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	client, err := daytona.Open(ctx, a.backendURL)
	if err != nil {
		return
	}
	defer client.Close()
	f(ctx, client)
}

// sandboxNames lists the names that begin with prefix, of sandboxes in one of
// the states.
func (a *app) sandboxNames(cmd *cobra.Command, prefix string, states ...daytona.State) (names []cobra.Completion) {
	a.forCompletion(cmd, func(ctx context.Context, c *daytona.Client) {
		for sb, err := range c.List(ctx, &daytona.Filter{NamePrefix: prefix, States: states}) {
			if err != nil {
				return
			}
			if i := sb.Info(); daytona.ValidName(i.Name) {
				names = append(names, cobra.CompletionWithDesc(i.Name, printable(string(i.State)+", "+imageOf(i))))
			}
		}
	})
	return names
}

// completeSandboxes completes up to max names (any number if it is negative)
// of sandboxes in one of the states; none means all.
func (a *app) completeSandboxes(max int, states ...daytona.State) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if max >= 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names := slices.DeleteFunc(a.sandboxNames(cmd, prefix, states...), func(c cobra.Completion) bool {
			name, _, _ := strings.Cut(c, "\t")
			return slices.Contains(args, name)
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeCopy completes "NAME:" beside local files.
func (a *app) completeCopy(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) >= 2 || strings.ContainsAny(prefix, ":/.") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var ends []cobra.Completion
	for _, c := range a.sandboxNames(cmd, prefix) {
		name, _, _ := strings.Cut(c, "\t")
		ends = append(ends, name+":")
	}
	if len(ends) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return ends, cobra.ShellCompDirectiveNoSpace
}

func (a *app) completeSessions(cmd *cobra.Command, args []string, prefix string) (ids []cobra.Completion, _ cobra.ShellCompDirective) {
	if len(args) == 1 {
		a.forCompletion(cmd, func(ctx context.Context, c *daytona.Client) {
			sb, err := c.Get(ctx, args[0])
			if err != nil {
				return
			}
			all, err := sb.Process().Sessions(ctx)
			if err != nil {
				return
			}
			for _, id := range all {
				if strings.HasPrefix(id, prefix) && printable(id) == id {
					ids = append(ids, id)
				}
			}
		})
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeVolumes(cmd *cobra.Command, args []string, prefix string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
	a.forCompletion(cmd, func(ctx context.Context, c *daytona.Client) {
		m, err := c.Volumes()
		if err != nil {
			return
		}
		for v, err := range m.ListVolumes(ctx) {
			if err != nil {
				return
			}
			if strings.HasPrefix(v.Name, prefix) && daytona.ValidName(v.Name) && !slices.Contains(args, v.Name) {
				names = append(names, v.Name)
			}
		}
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeSnapshots completes up to max names (any number if it is negative) of
// snapshots.
func (a *app) completeSnapshots(max int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
		if max >= 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a.forCompletion(cmd, func(ctx context.Context, c *daytona.Client) {
			s, err := c.Snapshots()
			if err != nil {
				return
			}
			for sn, err := range s.ListSnapshots(ctx) {
				if err != nil {
					return
				}
				if strings.HasPrefix(sn.Name, prefix) && printable(sn.Name) == sn.Name && !slices.Contains(args, sn.Name) {
					names = append(names, sn.Name)
				}
			}
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
