{{/* What things are called. Names leave room for what is put after them. */}}
{{- define "lastword.name" -}}
{{- default .Chart.Name .Values.nameOverride | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "lastword.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "lastword.name" .) .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lastword.name" .) | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* By what a pod of this release is found: call with (dict "root" $ "component" "gateway"). */}}
{{- define "lastword.selector" -}}
app.kubernetes.io/name: {{ include "lastword.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "lastword.labels" -}}
{{ include "lastword.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
app.kubernetes.io/part-of: lastword
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Of pods: what changes with the chart alone would restart them for nothing. */}}
{{- define "lastword.podLabels" -}}
{{ include "lastword.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: lastword
{{- end -}}

{{- define "lastword.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The image of `helm test`, which has Python as well. */}}
{{- define "lastword.testImage" -}}
{{- $tag := default (printf "%s-workers" (default .Chart.AppVersion .Values.image.tag)) .Values.test.image.tag -}}
{{ default .Values.image.repository .Values.test.image.repository }}:{{ $tag }}
{{- end -}}

{{- define "lastword.serviceAccount.isMade" -}}
{{- $sa := .Values.serviceAccount -}}
{{- if or $sa.create (and .Values.kubernetesRuntime.enabled (not $sa.name)) -}}true{{- end -}}
{{- end -}}

{{- define "lastword.serviceAccount.name" -}}
{{- if .Values.serviceAccount.name -}}
{{ .Values.serviceAccount.name }}
{{- else if include "lastword.serviceAccount.isMade" . -}}
{{ include "lastword.fullname" . }}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- define "lastword.runtimeNamespace" -}}
{{ default .Release.Namespace .Values.kubernetesRuntime.namespace }}
{{- end -}}

{{/* An owner must stand in the namespace of what it owns. */}}
{{- define "lastword.ownsWorkers" -}}
{{- if eq (include "lastword.runtimeNamespace" .) .Release.Namespace -}}true{{- end -}}
{{- end -}}

{{/* Whose worker pods they are: another release may keep its own in the same namespace. */}}
{{- define "lastword.fleet" -}}
{{ include "lastword.fullname" . }}-{{ .Release.Namespace | sha256sum | trunc 8 }}
{{- end -}}

{{/* By what the worker pods of this release are found. */}}
{{- define "lastword.workers.selector" -}}
app.kubernetes.io/managed-by: lastword
lastword/fleet: {{ include "lastword.fleet" . | quote }}
{{- end -}}

{{/* The Service as pods of this release call it. */}}
{{- define "lastword.serviceUrl" -}}
http://{{ include "lastword.fullname" . }}.{{ .Release.Namespace }}.svc:{{ int64 .Values.service.port }}
{{- end -}}
