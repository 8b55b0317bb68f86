package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Finding is one thing that was examined on this machine.
type Finding struct {
	// Name is what was examined.
	Name string `json:"name"`
	// Status is "ok", "limited" (sandboxes run, but not with everything) or
	// "missing" (they do not run without it).
	Status string `json:"status"`
	// Detail says what was found.
	Detail string `json:"detail"`
	// Remedy says what to do about it. Empty if nothing needs to be done.
	Remedy string `json:"remedy,omitempty"`
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can do, and what to do about the rest",
		Long: `Examine what sandboxes need of this machine and say in plain words what is
there, what is not, what that means, and what to do about it.

Exit code 1 means that sandboxes cannot be run on this machine at all.`,
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.Diagnose == nil {
				return fmt.Errorf("this build of daytona has no backend that runs on this machine")
			}
			p := a.startProgress("examining this machine")
			findings, err := a.Diagnose(cmd.Context(), a.backendURL)
			p.finish()
			if err != nil {
				return err
			}
			if err := a.emit(findings, func(w io.Writer) error { return findingsText(w, findings) }); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Status == "missing" {
					return exitCode(1)
				}
			}
			return nil
		},
	}
}

func findingsText(w io.Writer, findings []Finding) error {
	var missing, limited int
	for _, f := range findings {
		switch f.Status {
		case "missing":
			missing++
		case "limited":
			limited++
		}
		fmt.Fprintf(w, "%-8s %s: %s\n", printable(f.Status), printable(f.Name), indent(f.Detail))
		if f.Remedy != "" {
			fmt.Fprintf(w, "         → %s\n", indent(f.Remedy))
		}
	}
	switch {
	case missing > 0:
		fmt.Fprint(w, "\nSandboxes cannot be run on this machine; see what is missing above.\n")
	case limited > 0:
		fmt.Fprint(w, "\nSandboxes can be run on this machine, with the limits above.\n")
	default:
		fmt.Fprint(w, "\nSandboxes can be run on this machine.\n")
	}
	return nil
}

func indent(s string) string {
	return strings.ReplaceAll(printableLines(strings.TrimSpace(s)), "\n", "\n           ")
}
