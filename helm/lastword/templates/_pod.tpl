{{/* What every pod of this release has. Call with (dict "root" $). */}}
{{- define "lastword.pod.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.priorityClassName }}
priorityClassName: {{ .Values.priorityClassName | quote }}
{{- end }}
{{- end -}}

{{/* Service links would put LASTWORD_PORT and others into the environment: the program refuses to
start with LASTWORD_ variables that it does not know. */}}
{{- define "lastword.pod.alone" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- end -}}

{{/* A Job that calls the program: (dict "root" $ "component" "agents" "hook" HOOKS). */}}
{{- define "lastword.job.metadata" -}}
{{- $name := printf "%s-%s" (include "lastword.fullname" .root) .component -}}
{{- $isHook := and .root.Values.jobs.useHelmHooks .hook -}}
{{- if not $isHook }}
{{- /* An ordinary Job cannot be changed: whatever changes makes another one, which does no harm. */}}
{{- $name = printf "%s-%s" $name (printf "%s %s" .root.Chart.Version (toJson .root.Values) | sha256sum | trunc 8) }}
{{- end }}
name: {{ $name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "lastword.labels" (dict "root" .root "component" .component) | nindent 2 }}
{{- if $isHook }}
annotations:
  helm.sh/hook: {{ .hook }}
  helm.sh/hook-weight: "0"
  # One that failed stays, for its log.
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
{{- end -}}

{{- define "lastword.job.limits" -}}
backoffLimit: {{ int64 .Values.jobs.backoffLimit }}
activeDeadlineSeconds: {{ int64 .Values.jobs.activeDeadlineSeconds }}
ttlSecondsAfterFinished: 86400
{{- end -}}
