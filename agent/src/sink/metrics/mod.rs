//! /metrics
