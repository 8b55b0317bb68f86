package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Topics of the database.
const (
	// TopicWake has the ids of sandboxes to look at at once. An empty payload
	// means all that wait for something, such as for a snapshot on a runner.
	TopicWake = "sandbox.wake"
	// TopicChanged has the ids of sandboxes of which something has changed that
	// decides who may reach them: their state, whether they are public, tokens.
	TopicChanged = "sandbox.changed"
)

// Event is a change of a sandbox.
type Event struct {
	// Name is that of the wire: sandbox.created, sandbox.state.updated or
	// sandbox.desired-state.updated.
	Name    string
	Sandbox *Sandbox
	// Old and New are states, or desired states.
	Old, New string
}

// Config says what a [Service] is made of. DB, Deps and Key must be set.
type Config struct {
	DB   *store.DB
	Deps Deps
	// Key, of 32 bytes, seals what must be readable again in the database: auth
	// tokens, signing keys, and proxies with passwords.
	Key []byte
	// Holder names this server among those of a database. Defaults to a random
	// name.
	Holder string

	// PreviewURL is the template of preview URLs, with {{PORT}} and
	// {{sandboxId}}. Defaults to "http://{{PORT}}-{{sandboxId}}.proxy.localhost:4000".
	PreviewURL string
	// ProxyURL is where the proxy is, for build logs. Defaults to
	// "http://proxy.localhost:4000".
	ProxyURL string
	// ToolboxURL is the base of toolboxes. Defaults to ProxyURL + "/toolbox".
	ToolboxURL string
	// SSHGateway is the host, or host:port, of the SSH gateway. Defaults to
	// "localhost:2222".
	SSHGateway string

	// MaxAutoArchive is the longest interval of automatic archiving in minutes.
	// Defaults to 43200, 30 days.
	MaxAutoArchive int
	// Wait is how long a request waits for what it asked for. Defaults to 30 s.
	Wait time.Duration
	// Sweep is how often everything is looked at. Defaults to 10 s.
	Sweep time.Duration
	// BackupEvery is how often a started sandbox is backed up, on runners that
	// can. Defaults to 1 h; negative is never, not even when it stops.
	BackupEvery time.Duration
	// LostAfter is for how long a runner may be away before its sandboxes are
	// taken to be lost. Defaults to 10 min.
	LostAfter time.Duration
	// DefaultSnapshot is the name of the snapshot of sandboxes that name none.
	DefaultSnapshot string
	// WakeOn are topics that tell of copies of snapshots on runners. Defaults to
	// none: the next sweep finds them.
	WakeOn []string
	// Event is told of changes in the transaction that makes them; an error undoes
	// that. Defaults to nobody.
	Event func(ctx context.Context, e Event) error
	// Now is the clock. Defaults to [time.Now].
	Now func() time.Time
	// Log defaults to [slog.Default].
	Log *slog.Logger
}

// Service is the sandboxes of a server. It is safe for concurrent use, and so
// are several on one database.
type Service struct {
	db     *store.DB
	deps   Deps
	config Config
	seals  *sealer
	log    *slog.Logger
	// watch is for how long runners could have told of themselves, and clients
	// could have used sandboxes.
	watch *store.Watch

	mu sync.Mutex
	// active has when sandboxes were used that the database does not know yet.
	active map[string]time.Time
	// touched has when each was noted last.
	touched map[string]time.Time
}

// New returns a service. It does nothing by itself until [Service.Run].
func New(c Config) (*Service, error) {
	seals, err := newSealer(c.Key)
	if err != nil {
		return nil, err
	}
	if c.DB == nil || c.Deps.Jobs == nil || c.Deps.Runners == nil || c.Deps.Snapshots == nil || c.Deps.Regions == nil ||
		c.Deps.Quotas == nil || c.Deps.Organizations == nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "make sandbox service", Message: "a dependency is missing"}
	}
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Holder, newID())
	def(&c.ProxyURL, "http://proxy.localhost:4000")
	def(&c.PreviewURL, "http://{{PORT}}-{{sandboxId}}.proxy.localhost:4000")
	def(&c.ToolboxURL, c.ProxyURL+"/toolbox")
	def(&c.SSHGateway, "localhost:2222")
	if c.MaxAutoArchive == 0 {
		c.MaxAutoArchive = 43200
	}
	if c.Wait == 0 {
		c.Wait = 30 * time.Second
	}
	if c.Sweep == 0 {
		c.Sweep = 10 * time.Second
	}
	if c.BackupEvery == 0 {
		c.BackupEvery = time.Hour
	}
	if c.LostAfter == 0 {
		c.LostAfter = 10 * time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Service{db: c.DB, deps: c.Deps, config: c, seals: seals, log: c.Log, watch: store.NewWatch(3*c.Sweep, c.Now()),
		active: map[string]time.Time{}, touched: map[string]time.Time{}}, nil
}

// now has milliseconds, as the wire does, so that a time that a client was
// told is the one that is compared.
func (s *Service) now() time.Time { return s.config.Now().UTC().Truncate(time.Millisecond) }

func notFound(idOrName string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox with ID or name " + clip(idOrName) + " not found"}
}

// clip keeps what a client sent from making a message of any length.
func clip(s string) string {
	if len(s) > 256 {
		return s[:256]
	}
	return s
}

func inProgress() error {
	return &daytona.Error{Kind: daytona.KindConflict, Message: "Sandbox state change in progress"}
}

func state(message string) error { return &daytona.Error{Kind: daytona.KindState, Message: message} }

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindUnsupported, Message: fmt.Sprintf(format, args...)}
}

// gone is what is not there for clients.
const gone = "(sandbox.state = 'destroyed' OR (sandbox.state IN ('error', 'build_failed') AND sandbox.desired_state = 'destroyed'))"

// Get returns a sandbox of an organization by id, or else by name.
func (s *Service) Get(ctx context.Context, organizationID, idOrName string) (*Sandbox, error) {
	return s.get(ctx, organizationID, idOrName, false)
}

func (s *Service) get(ctx context.Context, organizationID, idOrName string, lock bool) (*Sandbox, error) {
	sb := &Sandbox{}
	q := s.db.In(ctx, organizationID).Select(sb).Where("sandbox.id = ? OR sandbox.name = ?", idOrName, idOrName).Where("NOT "+gone).
		OrderExpr("CASE WHEN sandbox.id = ? THEN 0 ELSE 1 END", idOrName).Limit(1)
	if lock && s.db.Postgres() {
		q = q.For("UPDATE")
	}
	if err := q.Scan(ctx); store.IsNone(err) {
		return nil, notFound(idOrName)
	} else if err != nil {
		return nil, err
	}
	sb.remember()
	return sb, nil
}

// Find returns a sandbox of any organization by id, for the services of the
// system: KindNotFound as [Service.Get] has it.
func (s *Service) Find(ctx context.Context, id string) (*Sandbox, error) {
	sb, err := s.byID(ctx, id, false)
	if err == nil && (sb.State == Destroyed || (sb.State == Errored || sb.State == BuildFailed) && sb.Desired == WantDestroyed) {
		err = notFound(id)
	}
	if err != nil {
		return nil, err
	}
	return sb, nil
}

// Any is Find for one that is destroyed as well, which comes with KindGone: for
// who has to tell its members so.
func (s *Service) Any(ctx context.Context, id string) (*Sandbox, error) {
	sb, err := s.byID(ctx, id, false)
	if err == nil && (sb.State == Destroyed || (sb.State == Errored || sb.State == BuildFailed) && sb.Desired == WantDestroyed) {
		err = &daytona.Error{Kind: daytona.KindGone, Message: "Sandbox " + clip(id) + " was destroyed"}
	}
	return sb, err
}

// byID is for the reconciler, which serves all organizations.
func (s *Service) byID(ctx context.Context, id string, lock bool) (*Sandbox, error) {
	sb := &Sandbox{}
	q := s.db.All(ctx).NewSelect().Model(sb).Where("id = ?", id)
	if lock && s.db.Postgres() {
		q = q.For("UPDATE")
	}
	if err := q.Scan(ctx); store.IsNone(err) {
		return nil, notFound(id)
	} else if err != nil {
		return nil, err
	}
	sb.remember()
	return sb, nil
}

func (sb *Sandbox) remember() { sb.was = &was{sb.State, sb.Listed, sb.Desired} }

// change changes a sandbox in one transaction: f says what is to be, and what
// that leads to is begun.
func (s *Service) change(ctx context.Context, organizationID, idOrName string, f func(context.Context, *Sandbox) error) (*Sandbox, error) {
	var sb *Sandbox
	err := s.db.Tx(ctx, func(ctx context.Context) (err error) {
		if sb, err = s.get(ctx, organizationID, idOrName, true); err != nil {
			return err
		}
		if err := f(ctx, sb); err != nil {
			return err
		}
		if err := s.advance(ctx, sb); err != nil {
			return err
		}
		return s.save(ctx, sb)
	})
	if err != nil {
		return nil, err
	}
	return sb, nil
}

// want changes what is desired, if that is legal and nothing is under way.
func want(sb *Sandbox, desired Desired) error {
	if !May(sb.State, desired) {
		return state(fmt.Sprintf("Sandbox is %s and can not become %s", sb.Shown(), desired))
	}
	sb.Desired = desired
	return nil
}

// insert writes a new sandbox.
func (s *Service) insert(ctx context.Context, sb *Sandbox) error {
	sb.settle()
	sb.Version, sb.Reserved = 1, sb.uses()
	if _, err := s.db.All(ctx).NewInsert().Model(sb).Exec(ctx); err != nil {
		if store.IsUnique(err) {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "Sandbox with name " + sb.Name + " already exists"}
		}
		return err
	}
	if err := s.addLabels(ctx, sb); err != nil {
		return err
	}
	if err := s.saveVolumes(ctx, sb); err != nil {
		return err
	}
	sb.remember()
	if sb.WarmPoolID != "" {
		return nil // nobody has it yet
	}
	return s.publish(ctx, Event{Name: "sandbox.created", Sandbox: sb})
}

type labelRow struct {
	bun.BaseModel  `bun:"table:sandbox_labels,alias:label"`
	OrganizationID string `bun:"organization_id,notnull"`
	SandboxID      string `bun:"sandbox_id,pk"`
	Name           string `bun:"name,pk"`
	Value          string `bun:"value,notnull"`
}

type volumeRow struct {
	bun.BaseModel  `bun:"table:sandbox_volumes,alias:mount"`
	OrganizationID string `bun:"organization_id,notnull"`
	SandboxID      string `bun:"sandbox_id,pk"`
	VolumeID       string `bun:"volume_id,pk"`
}

// saveLabels keeps the labels as rows as well, which can be searched with the
// same SQL on every database.
func (s *Service) saveLabels(ctx context.Context, sb *Sandbox) error {
	if _, err := s.db.In(ctx, sb.OrganizationID).Delete((*labelRow)(nil)).Where("sandbox_id = ?", sb.ID).Exec(ctx); err != nil {
		return err
	}
	return s.addLabels(ctx, sb)
}

func (s *Service) addLabels(ctx context.Context, sb *Sandbox) error {
	rows := make([]labelRow, 0, len(sb.Labels))
	for k, v := range sb.Labels {
		rows = append(rows, labelRow{OrganizationID: sb.OrganizationID, SandboxID: sb.ID, Name: k, Value: v})
	}
	if len(rows) == 0 {
		return nil
	}
	_, err := s.db.All(ctx).NewInsert().Model(&rows).Exec(ctx)
	return err
}

func (s *Service) saveVolumes(ctx context.Context, sb *Sandbox) error {
	seen := map[string]bool{}
	for _, v := range sb.Volumes {
		if seen[v.VolumeID] {
			continue
		}
		seen[v.VolumeID] = true
		row := &volumeRow{OrganizationID: sb.OrganizationID, SandboxID: sb.ID, VolumeID: v.VolumeID}
		if _, err := s.db.All(ctx).NewInsert().Model(row).Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// clock keeps when it was started and stopped, which what passes, such as a resize,
// does not do.
func (sb *Sandbox) clock(now time.Time) {
	if slices.Contains([]State{Resizing, Snapshotting, Forking}, sb.was.state) {
		return
	}
	switch sb.State {
	case Started:
		sb.StartedAt = new(now)
	case Stopped, Paused:
		if sb.was.state != Archiving {
			sb.StoppedAt = new(now)
		}
	}
}

// save writes a changed sandbox, if nobody else changed it since it was read.
func (s *Service) save(ctx context.Context, sb *Sandbox) error {
	sb.settle()
	now := s.now()
	sb.UpdatedAt = now
	if sb.State != sb.was.state {
		sb.StateSince, sb.LastActivityAt = now, now
		sb.clock(now)
	}
	if err := s.account(ctx, sb); err != nil {
		return err
	}
	version := sb.Version
	sb.Version++
	q := s.db.In(ctx, sb.OrganizationID).Update(sb).WherePK().Where("sandbox.version = ?", version)
	if sb.State == sb.was.state {
		// It may have been used meanwhile, which is written without this row's lock.
		q = q.ExcludeColumn("last_activity_at")
	}
	if err := store.Changed(q.Exec(ctx)); err != nil {
		if errors.Is(err, daytona.ErrConflict) {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "Sandbox was modified by another operation"}
		}
		return err
	}
	if sb.State == Destroyed && sb.was.state != Destroyed {
		if err := s.forget(ctx, sb); err != nil {
			return err
		}
	}
	if sb.was.shown != sb.Listed && sb.WarmPoolID == "" {
		err := s.publish(ctx, Event{"sandbox.state.updated", sb, string(sb.was.shown), string(sb.Listed)})
		if err != nil {
			return err
		}
	}
	if sb.was.desired != sb.Desired && sb.WarmPoolID == "" {
		err := s.publish(ctx, Event{"sandbox.desired-state.updated", sb, string(sb.was.desired), string(sb.Desired)})
		if err != nil {
			return err
		}
	}
	sb.remember()
	if err := s.db.Publish(ctx, TopicChanged, sb.ID); err != nil {
		return err
	}
	return s.db.Publish(ctx, "sandbox/"+sb.ID, "")
}

// forget removes what a sandbox that is gone had.
func (s *Service) forget(ctx context.Context, sb *Sandbox) error {
	for _, model := range []any{(*volumeRow)(nil), (*previewToken)(nil), (*sshAccess)(nil)} {
		if _, err := s.db.In(ctx, sb.OrganizationID).Delete(model).Where("sandbox_id = ?", sb.ID).Exec(ctx); err != nil {
			return err
		}
	}
	if len(sb.Secrets) > 0 && s.deps.Secrets != nil {
		return s.deps.Secrets.Detach(ctx, sb.OrganizationID, sb.ID)
	}
	return nil
}

// account tells the quota what a sandbox uses, where that has changed.
func (s *Service) account(ctx context.Context, sb *Sandbox) error {
	uses := sb.uses()
	if uses == sb.Reserved {
		return nil
	}
	sb.Reserved = uses
	if uses == (Resources{}) {
		return s.deps.Quotas.Release(ctx, sb.ID)
	}
	return s.deps.Quotas.Adjust(ctx, sb.claim(uses))
}

func (sb *Sandbox) claim(r Resources) Claim {
	c := Claim{SandboxID: sb.ID, OrganizationID: sb.OrganizationID, RegionID: sb.RegionID, Class: sb.Class, Resources: r, Ephemeral: sb.Ephemeral()}
	if r.GPU > 0 {
		c.GPUType, _, _ = strings.Cut(sb.GPUType, ",")
	}
	return c
}

// reserve asks the quota for what a sandbox is to use.
func (s *Service) reserve(ctx context.Context, sb *Sandbox, r Resources) error {
	c := sb.claim(r)
	if r.GPU > 0 {
		// Each type that will do must be one that it may have.
		for t := range strings.SplitSeq(sb.GPUType, ",") {
			c.GPUType = t
			if err := s.deps.Quotas.Reserve(ctx, c); err != nil {
				return err
			}
		}
	} else if err := s.deps.Quotas.Reserve(ctx, c); err != nil {
		return err
	}
	sb.Reserved = r
	return nil
}

func (s *Service) publish(ctx context.Context, e Event) error {
	if s.config.Event == nil {
		return nil
	}
	return s.config.Event(ctx, e)
}

// wait returns a sandbox once done says so, or as it is when the time for
// waiting is over.
func (s *Service) wait(ctx context.Context, id string, done func(*Sandbox) bool) (*Sandbox, error) {
	changed, end := s.db.Subscribe("sandbox/" + id)
	defer end()
	over := time.NewTimer(s.config.Wait)
	defer over.Stop()
	// Should a hint be lost.
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	for {
		sb, err := s.byID(ctx, id, false)
		if err != nil || done(sb) {
			return sb, err
		}
		select {
		case <-changed:
		case <-look.C:
		case <-over.C:
			return sb, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// waitJob waits for a job that f's caller has begun, and returns why it failed.
func (s *Service) waitJob(ctx context.Context, sb *Sandbox, job string) (*Sandbox, error) {
	if job == "" {
		return sb, nil
	}
	sb, err := s.wait(ctx, sb.ID, func(sb *Sandbox) bool { return sb.JobID != job })
	if err != nil {
		return nil, err
	}
	if sb.LastJobID == job && sb.LastJobError != "" {
		return nil, state(sb.LastJobError)
	}
	return sb, nil
}
