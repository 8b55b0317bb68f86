package server

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/daytona-go/daytona/server/organization"
)

const (
	suspendLease = "suspension"
	// suspendEvery is how often what runs of suspended organizations is looked
	// for, besides at once when an organization changes.
	suspendEvery = 30 * time.Second
	// suspendFor is how long something may still become what is to be stopped:
	// nothing is begun there any more.
	suspendFor = time.Hour
)

// suspend takes what organizations have that have been suspended for longer
// than their grace, in one server of all, until ctx ends.
func (s *Server) suspend(ctx context.Context) error {
	holder, since := rand.Text(), map[string]time.Time{}
	changed, stop := s.db.Subscribe(organization.TopicChanged)
	defer stop()
	tick := time.NewTicker(suspendEvery)
	defer tick.Stop()
	for {
		if _, ok, err := s.db.Lease(ctx, suspendLease, holder, 3*suspendEvery); err != nil {
			if ctx.Err() == nil {
				s.config.Log.Warn("who stops what suspended organizations have can't be found out", "err", err)
			}
		} else if ok {
			if err := s.enforceSuspension(ctx, since); err != nil && ctx.Err() == nil {
				s.config.Log.Error("what suspended organizations have can't be stopped", "err", err)
			}
		}
		select {
		case <-tick.C:
		case id := <-changed:
			delete(since, id)
		case <-ctx.Done():
			return s.db.Yield(context.WithoutCancel(ctx), suspendLease, holder)
		}
	}
}

// enforceSuspension stops sandboxes and deactivates snapshots. What can't be
// yet, since it is on its way to something, is next time; since has when an
// organization was first looked at, so that those that are suspended for ever
// cost nothing.
func (s *Server) enforceSuspension(ctx context.Context, since map[string]time.Time) error {
	ids, err := s.organizations.Overdue(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(since, func(id string, _ time.Time) bool { return !slices.Contains(ids, id) })
	var all []error
	for _, id := range ids {
		if first, ok := since[id]; !ok {
			since[id] = time.Now()
		} else if time.Since(first) > suspendFor {
			continue
		}
		all = append(all, s.sandboxes.StopAll(ctx, id), s.snapshots.DeactivateAll(ctx, id))
	}
	return errors.Join(all...)
}

// revokePush ends the credentials to push that an organization has.
func (s *Server) revokePush(ctx context.Context, organizationID string) error {
	if err := s.objects.Revoke(ctx, organizationID); err != nil {
		return err
	}
	return s.registries.RevokePush(ctx, organizationID)
}
