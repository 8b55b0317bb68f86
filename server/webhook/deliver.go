package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// delivery is a row of what is to be delivered where.
type delivery struct {
	bun.BaseModel `bun:"table:webhook_deliveries,alias:delivery"`

	MessageID      string `bun:"message_id,pk"`
	EndpointID     string `bun:"endpoint_id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	State          string `bun:"state,notnull"`
	Attempts       int    `bun:"attempts,notnull"`
	// NextAt is when to try next. While somebody tries it lies beyond the time
	// that this takes: whoever dies trying is replaced.
	NextAt time.Time `bun:"next_at,notnull"`
}

const (
	pending   = "pending"
	delivered = "delivered"
	failed    = "failed"
)

// poll is how often what is due is looked for, besides being told and knowing
// when to try again.
const poll = 10 * time.Second

// Run delivers until ctx is done. What it is in the middle of then is tried
// again by whoever runs next.
func (s *Service) Run(ctx context.Context) error {
	if !s.Enabled() {
		<-ctx.Done()
		return ctx.Err()
	}
	woken, stop := s.db.Subscribe(topic)
	defer stop()
	t := time.NewTimer(poll)
	defer t.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan string)
	busy := map[string]int{} // attempts that are made, by organization
	running := 0
	var swept time.Time
	for {
		next := poll
		for running < s.config.Workers {
			d, due, err := s.claim(ctx, full(busy, s.perOrganization()))
			if err != nil && ctx.Err() == nil {
				s.config.Log.Error("webhooks can't be delivered", "err", err)
			}
			if next = due; d == nil {
				break
			}
			running++
			busy[d.OrganizationID]++
			wg.Go(func() {
				if err := s.attempt(ctx, d); err != nil && ctx.Err() == nil {
					s.config.Log.Error("a webhook can't be delivered", "message", d.MessageID, "err", err)
				}
				select {
				case ended <- d.OrganizationID:
				case <-ctx.Done():
				}
			})
		}
		if time.Since(swept) > time.Hour {
			swept = time.Now()
			if err := s.Sweep(ctx, swept); err != nil && ctx.Err() == nil {
				s.config.Log.Error("old webhook messages can't be deleted", "err", err)
			}
		}
		t.Reset(next)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case organizationID := <-ended:
			running--
			if busy[organizationID]--; busy[organizationID] == 0 {
				delete(busy, organizationID)
			}
		case <-woken:
		case <-t.C:
		}
	}
}

// perOrganization is how many attempts are made for one organization at a time:
// endpoints that don't answer hold up their own.
func (s *Service) perOrganization() int { return max(1, s.config.Workers/8) }

// full are the organizations that have as many attempts as they may.
func full(busy map[string]int, most int) []string {
	var ids []string
	for id, n := range busy {
		if n >= most {
			ids = append(ids, id)
		}
	}
	return ids
}

// claim returns a delivery that is due, of none of some organizations, which
// nobody else makes now; nil, and when to ask again, if there is none.
func (s *Service) claim(ctx context.Context, not []string) (*delivery, time.Duration, error) {
	for {
		d := &delivery{}
		// It delivers for all organizations.
		q := s.db.All(ctx).NewSelect().Model(d).Where("state = ?", pending).OrderExpr("next_at").Limit(1)
		if len(not) > 0 {
			q = q.Where("organization_id NOT IN (?)", bun.List(not))
		}
		if err := q.Scan(ctx); store.IsNone(err) {
			return nil, poll, nil
		} else if err != nil {
			return nil, poll, err
		}
		if wait := d.NextAt.Sub(store.Now()); wait > 0 {
			return nil, min(max(wait, time.Millisecond), poll), nil
		}
		claimed := store.Now().Add(s.config.Timeout + 30*time.Second)
		err := store.Changed(s.db.In(ctx, d.OrganizationID).Update((*delivery)(nil)).Set("next_at = ?, attempts = attempts + 1", claimed).
			Where("message_id = ? AND endpoint_id = ? AND state = ? AND attempts = ?", d.MessageID, d.EndpointID, pending, d.Attempts).Exec(ctx))
		if errors.Is(err, daytona.ErrConflict) {
			continue // another server has it
		} else if err != nil {
			return nil, poll, err
		}
		d.NextAt = claimed
		return d, 0, nil
	}
}

// attempt tries to make a delivery that has been claimed.
func (s *Service) attempt(ctx context.Context, d *delivery) error {
	claimed := d.NextAt
	d.Attempts++
	m, e := &Message{}, &Endpoint{}
	if err := s.db.In(ctx, d.OrganizationID).Select(m).Where("id = ?", d.MessageID).Scan(ctx); err != nil {
		return err
	}
	err := s.db.In(ctx, d.OrganizationID).Select(e).Where("id = ?", d.EndpointID).Scan(ctx)
	if store.IsNone(err) || err == nil && e.Disabled {
		return s.settle(ctx, d, failed, claimed)
	} else if err != nil {
		return err
	}
	a := s.post(ctx, m, e)
	if ctx.Err() != nil {
		return ctx.Err() // the attempt was cut off: it says nothing of the receiver
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.db.All(ctx).NewInsert().Model(a).Exec(ctx); err != nil {
			return err
		}
		switch {
		case a.Status >= 200 && a.Status < 300:
			return s.settle(ctx, d, delivered, store.Now())
		case a.Status == http.StatusGone:
			if _, err := s.db.In(ctx, e.OrganizationID).Update((*Endpoint)(nil)).Set("disabled = ?, disabled_reason = ?, updated_at = ?", true, "the endpoint said that it is gone (410)", store.Now()).
				Where("id = ?", e.ID).Exec(ctx); err != nil {
				return err
			}
			return s.settle(ctx, d, failed, store.Now())
		case d.Attempts > len(s.config.Schedule):
			return s.settle(ctx, d, failed, store.Now())
		}
		wait := s.config.Schedule[d.Attempts-1]
		// Those that failed together don't come back together.
		wait += time.Duration(rand.Int64N(int64(wait)/5 + 1))
		return s.settle(ctx, d, pending, store.Now().Add(wait))
	})
}

func (s *Service) settle(ctx context.Context, d *delivery, state string, next time.Time) error {
	_, err := s.db.In(ctx, d.OrganizationID).Update((*delivery)(nil)).Set("state = ?, next_at = ?", state, next).
		Where("message_id = ? AND endpoint_id = ? AND attempts = ?", d.MessageID, d.EndpointID, d.Attempts).Exec(ctx)
	return err
}

// Sign returns the signature of a message.
func Sign(secret, id string, at time.Time, payload string) (string, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, key)
	io.WriteString(mac, id+"."+strconv.FormatInt(at.Unix(), 10)+"."+payload)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)), nil
}

// post makes one attempt.
func (s *Service) post(ctx context.Context, m *Message, e *Endpoint) *Attempt {
	began := time.Now()
	a := &Attempt{ID: uuid.NewString(), MessageID: m.ID, EndpointID: e.ID, OrganizationID: e.OrganizationID, URL: e.URL, CreatedAt: store.Now()}
	status, err := s.send(ctx, m, e, began)
	a.Status, a.Duration = status, time.Since(began).Milliseconds()
	if err != nil {
		a.Error = "the endpoint can't be reached"
		if ne := (interface{ Timeout() bool })(nil); errors.As(err, &ne) && ne.Timeout() {
			a.Error = "the endpoint did not answer in time"
		}
		if errors.Is(err, daytona.ErrInvalid) {
			a.Error = "the server must not connect to this address"
		}
		if errors.Is(err, daytona.ErrInternal) {
			a.Error = "the message can't be signed"
			s.config.Log.Error("webhook can't be signed", "endpoint", e.ID, "err", err)
		}
	}
	return a
}

func (s *Service) send(ctx context.Context, m *Message, e *Endpoint, at time.Time) (int, error) {
	secret, err := s.config.Box.Open(e.Secret, place(e))
	if err != nil {
		return 0, err
	}
	signature, err := Sign(secret, m.ID, at, m.Payload)
	if err != nil {
		return 0, &daytona.Error{Kind: daytona.KindInternal, Op: "sign webhook", Err: err}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL, strings.NewReader(m.Payload))
	if err != nil {
		return 0, &daytona.Error{Kind: daytona.KindInvalid, Op: "send webhook", Err: err}
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "Daytona-Webhooks/1")
	// svix- is what receivers know that were written for the hosted service.
	for _, prefix := range []string{"webhook-", "svix-"} {
		r.Header.Set(prefix+"id", m.ID)
		r.Header.Set(prefix+"timestamp", strconv.FormatInt(at.Unix(), 10))
		r.Header.Set(prefix+"signature", signature)
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return 0, err
	}
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
	return resp.StatusCode, nil
}

// Sweep deletes the messages that are too old at a time.
func (s *Service) Sweep(ctx context.Context, at time.Time) error {
	old := at.UTC().Add(-s.config.Retention)
	for _, q := range []string{
		"DELETE FROM webhook_attempts WHERE created_at < ?",
		"DELETE FROM webhook_deliveries WHERE message_id IN (SELECT id FROM webhook_messages WHERE created_at < ?)",
		"DELETE FROM webhook_messages WHERE created_at < ?",
	} {
		if _, err := s.db.All(ctx).NewRaw(q, old).Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}
