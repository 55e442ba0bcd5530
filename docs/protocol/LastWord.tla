------------------------------ MODULE LastWord ------------------------------
(***************************************************************************)
(* Every accepted turn ends. docs/PROTOCOL.md explains the protocol;      *)
(* tests/model checks what must never happen, this module what must.       *)
(*                                                                         *)
(* One conversation, whose turns are 1, 2, ...; replica ids; one database. *)
(* A step stands for a statement of src/store, named beside it. Time is a  *)
(* deadline that passes (Lapse) and may be moved a bounded number of times *)
(* (the cap). What ends a turn here is only what the protocol relies on:   *)
(* deadlines pass, and one replica goes on with its close pass. Workers    *)
(* may hang, replicas may die, stand still, or be judged though they live, *)
(* claims may commit late and their answers may be lost, as often as they  *)
(* like.                                                                   *)
(***************************************************************************)
EXTENDS Naturals

CONSTANTS
  Turns,      \* 1 .. n, in the order of their ordinals
  Ids,        \* replica ids
  Survivor,   \* the one that is neither killed, stopped nor judged
  Heir,       \* the id under which a judged replica starts over
  Nobody,     \* the nil id, and no holder at all
  Attempts,   \* lw_may_rerun_v1: 3
  Moves,      \* how often progress moves the deadline before it meets the cap
  Break       \* which guard is left out; "nothing" for the protocol as it is

VARIABLES
  phase,      \* none, queued, starting, running, ended: the in-flight row, and whether there is one
  epoch,      \* inflight.epoch
  holder,     \* inflight.replica
  overdue,    \* deadline <= clock_timestamp()
  moved,      \* how often the deadline was moved
  known,      \* the holder's process runs the turn: the claim's answer has arrived
  hung,       \* its worker never says anything again
  air,        \* claims that were sent and are not committed
  presence,   \* replicas.state: unborn, ready, lost
  process,    \* alive, frozen, dead
  rung        \* for one mutant: a loss was told and no pass has looked at this turn since

vars == <<phase, epoch, holder, overdue, moved, known, hung, air, presence, process, rung>>
rows == <<phase, epoch, holder, overdue, moved, known, hung, rung>>
replicas == <<presence, process>>

IsOpen(t) == phase[t] \in {"queued", "starting", "running"}
IsClaimed(t) == phase[t] \in {"starting", "running"}
IsGone(i) == IF i = Nobody THEN TRUE ELSE presence[i] = "lost"
IsHead(t) == \A u \in Turns : u < t => ~IsOpen(u)
\* The holder's process is there, and knows that it runs the turn.
IsHosted(t) == IsClaimed(t) /\ holder[t] # Nobody /\ known[t] /\ process[holder[t]] = "alive"

Init ==
  /\ phase = [t \in Turns |-> "none"]
  /\ epoch = [t \in Turns |-> 0]
  /\ holder = [t \in Turns |-> Nobody]
  /\ overdue = [t \in Turns |-> FALSE]
  /\ moved = [t \in Turns |-> 0]
  /\ known = [t \in Turns |-> FALSE]
  /\ hung = [t \in Turns |-> FALSE]
  /\ air = {}
  /\ presence = [i \in Ids |-> IF i = Heir THEN "unborn" ELSE "ready"]
  /\ process = [i \in Ids |-> IF i = Heir THEN "dead" ELSE "alive"]
  /\ rung = [t \in Turns |-> FALSE]

-----------------------------------------------------------------------------
\* lw_accept_v1
Accept(t) ==
  /\ phase[t] = "none" /\ \A u \in Turns : u < t => phase[u] # "none"
  /\ phase' = [phase EXCEPT ![t] = "queued"]
  /\ UNCHANGED <<epoch, holder, overdue, moved, known, hung, rung, air, replicas>>

\* engine::dispatch, claim: its snapshot
SendClaim(i, t) ==
  /\ process[i] = "alive" /\ presence[i] = "ready"
  /\ phase[t] = "queued" /\ IsHead(t)
  /\ \A u \in Turns : <<i, u>> \notin air
  /\ air' = air \cup {<<i, t>>}
  /\ UNCHANGED <<rows, replicas>>

\* ... its commit, whatever has become of its sender; the answer may be lost
CommitClaim(i, t, arrives) ==
  /\ <<i, t>> \in air
  /\ air' = air \ {<<i, t>>}
  /\ IF phase[t] = "queued"
       THEN /\ phase' = [phase EXCEPT ![t] = "starting"]
            /\ epoch' = [epoch EXCEPT ![t] = @ + 1]
            /\ holder' = [holder EXCEPT ![t] = i]
            /\ known' = [known EXCEPT ![t] = arrives /\ process[i] # "dead"]
            /\ hung' = [hung EXCEPT ![t] = FALSE]
            /\ overdue' = [overdue EXCEPT ![t] = FALSE]
       ELSE UNCHANGED <<phase, epoch, holder, known, hung, overdue>>
  /\ UNCHANGED <<moved, rung, replicas>>

\* start
Start(t) ==
  /\ phase[t] = "starting" /\ IsHosted(t) /\ ~IsGone(holder[t])
  /\ phase' = [phase EXCEPT ![t] = "running"]
  /\ overdue' = [overdue EXCEPT ![t] = FALSE]
  /\ UNCHANGED <<epoch, holder, moved, known, hung, rung, air, replicas>>

\* append: progress moves the deadline, up to the cap
Append(t) ==
  /\ phase[t] = "running" /\ IsHosted(t) /\ ~hung[t]
  /\ moved[t] < Moves
  /\ moved' = [moved EXCEPT ![t] = @ + 1]
  /\ overdue' = [overdue EXCEPT ![t] = FALSE]
  /\ UNCHANGED <<phase, epoch, holder, known, hung, rung, air, replicas>>

\* lw_end_v1: the row goes, and all that it held
End(t) ==
  /\ phase' = [phase EXCEPT ![t] = "ended"]
  /\ epoch' = [epoch EXCEPT ![t] = 0]
  /\ holder' = [holder EXCEPT ![t] = Nobody]
  /\ overdue' = [overdue EXCEPT ![t] = FALSE]
  /\ moved' = [moved EXCEPT ![t] = 0]
  /\ known' = [known EXCEPT ![t] = FALSE]
  /\ hung' = [hung EXCEPT ![t] = FALSE]
  /\ rung' = [rung EXCEPT ![t] = FALSE]

\* lw_finish_v1: the worker's end, or the holder's own clock
Finish(t) ==
  /\ IsHosted(t) /\ ~hung[t]
  /\ End(t)
  /\ UNCHANGED <<air, replicas>>

\* disown: a claim whose answer was lost
Disown(t) ==
  /\ IsClaimed(t) /\ holder[t] # Nobody /\ ~known[t] /\ process[holder[t]] = "alive"
  /\ holder' = [holder EXCEPT ![t] = Nobody]
  /\ rung' = [rung EXCEPT ![t] = Break = "pass once"]
  /\ UNCHANGED <<phase, epoch, overdue, moved, known, hung, air, replicas>>

\* A worker hangs, or its host's own loop does.
Hang(t) ==
  /\ IsClaimed(t) /\ ~hung[t]
  /\ hung' = [hung EXCEPT ![t] = TRUE]
  /\ UNCHANGED <<phase, epoch, holder, overdue, moved, known, rung, air, replicas>>

\* Every row has a deadline (I6), and it passes.
Lapse(t) ==
  /\ IsOpen(t) /\ ~overdue[t]
  /\ ~(Break = "deadline null" /\ IsClaimed(t))
  /\ overdue' = [overdue EXCEPT ![t] = TRUE]
  /\ UNCHANGED <<phase, epoch, holder, moved, known, hung, rung, air, replicas>>

\* Left out of the protocol on purpose: a worker's beat that counts as progress.
BeatOfWorker(t) ==
  /\ Break = "beat extends"
  /\ phase[t] = "running" /\ IsHosted(t) /\ overdue[t]
  /\ overdue' = [overdue EXCEPT ![t] = FALSE]
  /\ UNCHANGED <<phase, epoch, holder, moved, known, hung, rung, air, replicas>>

-----------------------------------------------------------------------------
\* lw_close_v1: held by the gone, or overdue (a living holder's: for twenty looks without a change)
IsDueByLoss(t) == IsClaimed(t) /\ IsGone(holder[t]) /\ (Break = "pass once" => rung[t])
IsDueByClock(t) == overdue[t] /\ ~(IsClaimed(t) /\ IsGone(holder[t]))
IsDue(t) == IsOpen(t) /\ (IsDueByLoss(t) \/ IsDueByClock(t))

\* lw_may_rerun_v1; the cap has not passed. That a turn ends with the second holder that is lost with it is the same
\* here as two attempts.
MayRerun(t) ==
  /\ phase[t] = "starting" /\ IsGone(holder[t])
  /\ epoch[t] < Attempts \/ Break = "attempts uncounted"

Close(i, t) ==
  /\ Break # "no reaper"
  /\ process[i] = "alive" /\ presence[i] = "ready"
  /\ IsDue(t)
  /\ IF MayRerun(t)
       THEN /\ phase' = [phase EXCEPT ![t] = "queued"]
            /\ holder' = [holder EXCEPT ![t] = Nobody]
            /\ overdue' = [overdue EXCEPT ![t] = FALSE]
            /\ known' = [known EXCEPT ![t] = FALSE]
            /\ hung' = [hung EXCEPT ![t] = FALSE]
            /\ rung' = [rung EXCEPT ![t] = FALSE]
            \* Where nobody counts, the number means nothing.
            /\ epoch' = [epoch EXCEPT ![t] = IF Break = "attempts uncounted" THEN 0 ELSE @]
            /\ UNCHANGED moved
       ELSE End(t)
  /\ UNCHANGED <<air, replicas>>

\* Only for "pass once": the pass after a loss finds nothing here, and none comes again.
PassOver(t) ==
  /\ Break = "pass once" /\ rung[t] /\ ~IsDueByLoss(t)
  /\ rung' = [rung EXCEPT ![t] = FALSE]
  /\ UNCHANGED <<phase, epoch, holder, overdue, moved, known, hung, air, replicas>>

-----------------------------------------------------------------------------
Kill(i) ==
  /\ i # Survivor /\ process[i] \in {"alive", "frozen"}
  /\ process' = [process EXCEPT ![i] = "dead"]
  /\ UNCHANGED <<rows, air, presence>>

Freeze(i) ==
  /\ i # Survivor /\ process[i] = "alive"
  /\ process' = [process EXCEPT ![i] = "frozen"]
  /\ UNCHANGED <<rows, air, presence>>

Thaw(i) ==
  /\ process[i] = "frozen"
  /\ process' = [process EXCEPT ![i] = "alive"]
  /\ UNCHANGED <<rows, air, presence>>

\* judge: right or wrong
Verdict(i) ==
  /\ i # Survivor /\ presence[i] = "ready"
  /\ presence' = [presence EXCEPT ![i] = "lost"]
  /\ rung' = [t \in Turns |-> Break = "pass once"]
  /\ UNCHANGED <<phase, epoch, holder, overdue, moved, known, hung, air, process>>

\* engine::presence, start_over
StartOver(i) ==
  /\ process[i] = "alive" /\ presence[i] = "lost" /\ presence[Heir] = "unborn"
  /\ presence' = [presence EXCEPT ![Heir] = "ready"]
  /\ process' = [process EXCEPT ![i] = "dead", ![Heir] = "alive"]
  /\ UNCHANGED <<rows, air>>

Next ==
  \/ \E t \in Turns :
       \/ Accept(t) \/ Start(t) \/ Append(t) \/ Finish(t) \/ Disown(t)
       \/ Hang(t) \/ Lapse(t) \/ BeatOfWorker(t) \/ PassOver(t)
       \/ \E i \in Ids : SendClaim(i, t) \/ Close(i, t) \/ \E b \in BOOLEAN : CommitClaim(i, t, b)
  \/ \E i \in Ids : Kill(i) \/ Freeze(i) \/ Thaw(i) \/ Verdict(i) \/ StartOver(i)

\* All that the promise needs: time passes, and one replica's pass goes on.
Passes == \A t \in Turns : WF_vars(Lapse(t)) /\ WF_vars(Close(Survivor, t))

Spec == Init /\ [][Next]_vars /\ Passes

\* What the mutants are given on top, so that none of them fails for mere idleness.
Health ==
  /\ \A t \in Turns :
       /\ WF_vars(SendClaim(Survivor, t)) /\ WF_vars(Start(t)) /\ WF_vars(Finish(t)) /\ WF_vars(Disown(t))
       /\ WF_vars(PassOver(t))
       /\ \A i \in Ids : WF_vars(\E b \in BOOLEAN : CommitClaim(i, t, b))
  /\ \A i \in Ids : WF_vars(StartOver(i))

HealthySpec == Spec /\ Health

-----------------------------------------------------------------------------
TypeOK ==
  /\ phase \in [Turns -> {"none", "queued", "starting", "running", "ended"}]
  /\ epoch \in [Turns -> 0..Attempts]
  /\ holder \in [Turns -> Ids \cup {Nobody}]
  /\ overdue \in [Turns -> BOOLEAN] /\ known \in [Turns -> BOOLEAN] /\ hung \in [Turns -> BOOLEAN]
  /\ moved \in [Turns -> 0..Moves]
  /\ air \subseteq (Ids \X Turns)
  /\ presence \in [Ids -> {"unborn", "ready", "lost"}]
  /\ process \in [Ids -> {"alive", "frozen", "dead"}]

\* I9
OneAtATime == \A t, u \in Turns : IsClaimed(t) /\ IsClaimed(u) => t = u

\* I2: the last word is the last.
EndsOnce == [][\A t \in Turns : phase[t] = "ended" => phase'[t] = "ended"]_vars

\* I6: every accepted turn ends.
EveryTurnEnds == \A t \in Turns : phase[t] = "queued" ~> phase[t] = "ended"
=============================================================================
